//! `loadtest report RESULTS`: one HTML file with tables and plots, needing no network and no script.
//!
//! Owns the page's arrangement; the lines are `plot`'s, the arithmetic is `results`'.

mod plot;

use crate::report::Report;
use crate::results::{self, Figure, Outcome, Results, figures, median, spread};
use crate::sample::Sample;
use anyhow::Result;
use clap::Args;
use plot::{Plot, Scale, Series, short};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The colours of the style sheet.
const COLOURS: usize = 10;
/// Always the same for those that are in most files; the others take what is left, in turn.
const FIXED: &[(&str, usize)] =
    &[("carillon", 0), ("carillon+redis", 1), ("floor", 9), ("naive", 8)];

/// `loadtest report`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Results of `bench --json` or of `run --json`; of several files the rows stand together
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// Above the page
    #[arg(long, default_value = "Load test")]
    title: String,
}

/// The page.
pub(crate) fn page(options: &Options) -> Result<String> {
    let mut all = Results::default();
    for path in &options.results {
        let one = results::read(path)?;
        all.about = one.about;
        all.outcomes.extend(one.outcomes);
    }
    Ok(render(&options.title, &all))
}

fn render(title: &str, results: &Results) -> String {
    let colours = colours(results);
    let rows = results.names(|one| &one.row);
    let sections: String = rows.iter().map(|row| section(results, row, &colours)).collect();
    let overview =
        if results.outcomes.len() > 1 { overview(results, &colours) } else { String::new() };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{0}</title>\n\
         <style>\n{1}</style></head>\n<body><main>\n<h1>{0}</h1>\n{2}{overview}{sections}</main></body>\n</html>\n",
        escape(title),
        include_str!("page/style.css"),
        about(results),
    )
}

/// Text as it may stand in HTML, attributes included.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn colours(results: &Results) -> BTreeMap<String, usize> {
    let mut free = (0..COLOURS).filter(|one| FIXED.iter().all(|fixed| fixed.1 != *one)).cycle();
    let colour = |server: &str| {
        let fixed = FIXED.iter().find(|fixed| fixed.0 == server).map(|fixed| fixed.1);
        fixed.or_else(|| free.next()).unwrap_or_default()
    };
    let servers = results.names(|one| &one.server);
    let mut colour = colour;
    servers.into_iter().map(|server| (server.to_owned(), colour(server))).collect()
}

fn about(results: &Results) -> String {
    let about = &results.about;
    let known = [("", &about.date), ("", &about.machine), ("load average ", &about.load)];
    let facts: Vec<String> = known
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name}{}", escape(value)))
        .collect();
    let mut text = format!("<p>{}</p>\n", facts.join(" · "));
    if !about.method.is_empty() {
        text += &format!("<p>{}</p>\n", escape(&about.method));
    }
    let bound: Vec<&Outcome> =
        results.outcomes.iter().filter(|one| one.runs.iter().any(Report::driver_bound)).collect();
    if !bound.is_empty() {
        text += &format!(
            "<p class=\"bad\">In {} of {} cells, marked ⚑, the driver was busier than the server: such a rate is \
             the driver's.</p>\n",
            bound.len(),
            results.outcomes.len()
        );
    }
    let others = results.others_percent();
    if others > 20.0 {
        text += &format!(
            "<p class=\"bad\">Others used up to {others:.0} % of a core meanwhile: these are no figures to keep.</p>\n"
        );
    }
    if !about.servers.is_empty() {
        let lines: String =
            about.servers.iter().map(|line| format!("<li>{}</li>", escape(line))).collect();
        text += &format!("<details><summary>The servers</summary><ul>{lines}</ul></details>\n");
    }
    text
}

fn main_figure(outcome: &Outcome) -> &'static Figure {
    let scenario = outcome.runs.first().map_or("", |run| run.scenario.as_str());
    &figures(scenario)[0]
}

fn dot(colours: &BTreeMap<String, usize>, server: &str) -> String {
    let colour = colours.get(server).copied().unwrap_or_default();
    let name = escape(server).replace('+', "<wbr/>+");
    format!("<span class=\"dot c{colour}\"></span>{name}")
}

/// Rows × servers, the main figure of each.
fn overview(results: &Results, colours: &BTreeMap<String, usize>) -> String {
    let servers = results.names(|one| &one.server);
    let head: String =
        servers.iter().map(|server| format!("<th>{}</th>", dot(colours, server))).collect();
    let mut body = String::new();
    for row in results.names(|one| &one.row) {
        let main = |outcome: &Outcome| median(&outcome.runs, main_figure(outcome).of);
        let floor = results.find(row, "floor").map(main);
        let best = results
            .outcomes
            .iter()
            .filter(|one| one.row == row && one.server != "floor")
            .map(main)
            .fold(f64::MAX, f64::min);
        let name =
            results.outcomes.iter().find(|one| one.row == row).map(|one| main_figure(one).name);
        body += &format!("<tr><td>{}<small>{}</small></td>", escape(row), name.unwrap_or_default());
        for server in &servers {
            let Some(outcome) = results.find(row, server) else {
                body += "<td class=\"none\">–</td>";
                continue;
            };
            let value = main(outcome);
            let ratio = floor
                .filter(|floor| *floor > 0.0)
                .map(|floor| format!("<small>× {:.2}</small>", value / floor))
                .unwrap_or_default();
            let class = if value <= best && *server != "floor" { " class=\"best\"" } else { "" };
            let digits = main_figure(outcome).digits;
            body += &format!("<td{class}>{value:.digits$}{}{ratio}</td>", marks(outcome));
        }
        body += "</tr>\n";
    }
    format!(
        "<section class=\"card scroll\"><table class=\"dense\"><thead><tr><th>work (small: × floor)</th>{head}</tr></thead>\n\
         <tbody>{body}</tbody></table></section>\n"
    )
}

/// What must not be overlooked beside a figure.
fn marks(outcome: &Outcome) -> String {
    let mut text = String::new();
    if outcome.runs.iter().any(Report::driver_bound) {
        text += " <span class=\"bad\" title=\"the driver was busier than the server\">⚑</span>";
    }
    if outcome.flaws() > 0 {
        text += " <span class=\"bad\" title=\"lost, doubled, out of order or cut\">✗</span>";
    }
    text
}

fn section(results: &Results, row: &str, colours: &BTreeMap<String, usize>) -> String {
    let outcomes: Vec<&Outcome> = results.outcomes.iter().filter(|one| one.row == row).collect();
    let Some(first) = outcomes.first() else { return String::new() };
    let main = main_figure(first);
    let typical: Vec<(&str, usize, &Report)> = outcomes
        .iter()
        .filter_map(|one| {
            let colour = colours.get(&one.server).copied().unwrap_or_default();
            Some((one.server.as_str(), colour, one.typical(main.of)?))
        })
        .collect();
    let mut text = format!("<section class=\"card\"><h2>{}</h2>\n", escape(row));
    text += &details(&outcomes, colours);
    text += "<div class=\"plots\">\n";
    text += &latency(&typical);
    text += &rates(&typical);
    text += "</div>\n";
    text += &processes(&typical);
    text + "</section>\n"
}

/// A line for each server: every figure, flaws, and who was busy.
fn details(outcomes: &[&Outcome], colours: &BTreeMap<String, usize>) -> String {
    let scenario = outcomes[0].runs.first().map_or("", |run| run.scenario.as_str());
    let figures = figures(scenario);
    let main = &figures[0];
    let most = outcomes.iter().map(|one| median(&one.runs, main.of)).fold(0.0, f64::max);
    let others: String =
        figures[1..].iter().map(|figure| format!("<th>{}</th>", escape(figure.name))).collect();
    let mut text = format!(
        "<div class=\"scroll\"><table><thead><tr><th>server</th><th style=\"text-align:left\">{}</th><th>±</th>{others}\
         <th>lost / doubled<br>/ out of order</th><th>refused<br>/ closed</th>\
         <th>server, driver<br>% of a core</th></tr></thead><tbody>\n",
        escape(main.name)
    );
    for outcome in outcomes {
        let runs = &outcome.runs;
        let value = median(runs, main.of);
        let width = if most > 0.0 { 100.0 * value / most } else { 0.0 };
        let colour = colours.get(&outcome.server).copied().unwrap_or_default();
        let digits = main.digits;
        let noise =
            if runs.len() > 1 { format!("{:.0} %", spread(runs, main.of)) } else { String::new() };
        text += &format!(
            "<tr><td>{}</td><td class=\"bar c{colour}\"><i style=\"width:{width:.1}%\"></i><b>{value:.digits$}</b>{}</td>\
             <td>{noise}</td>",
            dot(colours, &outcome.server),
            marks(outcome)
        );
        for figure in &figures[1..] {
            let value = median(runs, figure.of);
            let shown =
                if value >= 10_000.0 { short(value) } else { format!("{value:.*}", figure.digits) };
            text += &format!("<td>{shown}</td>");
        }
        let sum = |of: fn(&Report) -> u64| runs.iter().map(of).sum::<u64>();
        let flaws = [sum(|run| run.lost), sum(|run| run.duplicated), sum(|run| run.reordered)];
        let cut = [sum(|run| run.refused), sum(|run| run.closed)];
        let class =
            |some: &[u64]| if some.iter().any(|one| *one > 0) { " class=\"bad\"" } else { "" };
        text += &format!(
            "<td{}>{} / {} / {}</td><td{}>{} / {}</td><td>{:.0}, {:.0}</td></tr>\n",
            class(&flaws),
            flaws[0],
            flaws[1],
            flaws[2],
            class(&cut),
            cut[0],
            cut[1],
            median(runs, |run| run.server_percent),
            median(runs, |run| run.driver_percent),
        );
    }
    text + "</tbody></table></div>\n"
}

fn latency(typical: &[(&str, usize, &Report)]) -> String {
    let series: Vec<Series> = typical
        .iter()
        .filter(|(_, _, run)| run.latency.len() > 1)
        .map(|(server, colour, run)| Series {
            name: (*server).to_owned(),
            colour: *colour,
            points: run.latency.clone(),
        })
        .collect();
    if series.is_empty() {
        return String::new();
    }
    Plot {
        title: "Latency by percentile",
        x: ("deliveries at most so late", Scale::Nines),
        y: ("ms", Scale::Log),
        shaded: None,
        series,
    }
    .html()
}

/// What is counted each second, whichever of it there was.
fn rates(typical: &[(&str, usize, &Report)]) -> String {
    let over_time = |title, unit, scale, of: fn(&Sample) -> f64| {
        let series: Vec<Series> = typical
            .iter()
            .map(|(server, colour, run)| Series {
                name: (*server).to_owned(),
                colour: *colour,
                points: run
                    .samples
                    .iter()
                    .map(|sample| (sample.at, of(sample)))
                    // A second without deliveries has no latency.
                    .filter(|point| scale == Scale::Linear || point.1 > 0.0)
                    .collect(),
            })
            .filter(|series| series.points.iter().any(|point| point.1 > 0.0))
            .collect();
        let plot = Plot { title, x: ("s", Scale::Linear), y: (unit, scale), shaded: None, series };
        if plot.series.is_empty() { String::new() } else { plot.html() }
    };
    let delivers =
        typical.iter().any(|(_, _, run)| run.samples.iter().any(|one| one.delivered > 0.0));
    let mut text = String::new();
    if delivers {
        text += &over_time("Deliveries over time", "a second", Scale::Linear, |one| one.delivered);
        text += &over_time("p99 of each second", "ms", Scale::Log, |one| one.p99_ms);
    } else {
        text += &over_time("Answered publishes over time", "a second", Scale::Linear, |one| {
            one.answered
        });
        text += &over_time("Connections over time", "open", Scale::Linear, |one| one.opened as f64);
    }
    text +=
        &over_time("Server's CPU over time", "% of a core", Scale::Linear, Sample::server_percent);
    text
}

/// CPU and memory of each process, a pair of plots for each server.
fn processes(typical: &[(&str, usize, &Report)]) -> String {
    let mut text = String::new();
    for (server, _, run) in typical {
        let mut names: Vec<(u32, &str)> = Vec::new();
        for one in run.samples.iter().flat_map(|sample| &sample.processes) {
            if !names.iter().any(|name| name.0 == one.pid) {
                names.push((one.pid, &one.name));
            }
        }
        if names.is_empty() {
            continue;
        }
        let lines = |of: fn(&crate::sample::Usage) -> f64| -> Vec<Series> {
            let line = |(colour, (pid, name)): (usize, &(u32, &str))| Series {
                name: format!("{name} ({pid})"),
                colour: colour % COLOURS,
                points: run
                    .samples
                    .iter()
                    .filter_map(|sample| {
                        let one = sample.processes.iter().find(|one| one.pid == *pid)?;
                        Some((sample.at, of(one)))
                    })
                    .collect(),
            };
            names.iter().enumerate().map(line).collect()
        };
        let legend: String = names
            .iter()
            .enumerate()
            .map(|(colour, (pid, name))| {
                let colour = colour % COLOURS;
                format!(
                    "<span><span class=\"dot c{colour}\"></span>{} ({pid})</span>",
                    escape(name)
                )
            })
            .collect();
        let mut cpu = lines(|one| one.percent);
        cpu.push(Series {
            name: "driver".to_owned(),
            colour: 9,
            points: run.samples.iter().map(|one| (one.at, one.driver_percent)).collect(),
        });
        let shaded = Some((run.measured_from, run.measured_from + run.seconds))
            .filter(|(from, to)| *from > 0.0 && to > from);
        let time = ("s", Scale::Linear);
        let cpu =
            Plot { title: "CPU", x: time, y: ("% of a core", Scale::Linear), shaded, series: cpu };
        let memory = Plot {
            title: "Resident memory",
            x: time,
            y: ("MB", Scale::Linear),
            shaded,
            series: lines(|one| one.resident_bytes as f64 / 1e6),
        };
        text += &format!(
            "<div><h3>{}</h3><div class=\"legend\">{legend}<span><span class=\"dot c9\"></span>driver</span></div>\
             <div class=\"plots small\">{}{}</div></div>\n",
            escape(server),
            cpu.html(),
            memory.html()
        );
    }
    if text.is_empty() {
        return text;
    }
    format!(
        "<details><summary>CPU and memory by process (measured part shaded)</summary>\n{text}</details>\n"
    )
}

#[cfg(test)]
mod tests;
