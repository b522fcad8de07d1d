//! The table that a bench prints: Markdown, medians, and what must not be overlooked beside them.

use super::{Beside, Figure, Options, ROWS};
use crate::report::Report;
use crate::results::{Results, median, spread};

/// What was done, in a sentence or two.
pub(super) fn method(options: &Options) -> String {
    format!(
        "Server side on core {}, driver on core {}; {} × {} s a row, medians; ± is half the spread of the first \
         figure. 128-byte payloads; CPU is user + system of the server, its children and its Redis. Carillon as \
         shipped; limits of publishes a channel, messages a connection and polls a user raised.",
        options.server_core, options.driver_core, options.repetitions, options.duration
    )
}

fn main_figure(figure: Figure) -> fn(&Report) -> f64 {
    match figure {
        Figure::Delivery | Figure::Publish => |report| report.server_cpu_us,
        Figure::Memory => |report| report.idle_bytes,
        Figure::Connect => |report| report.connect_cpu_us,
        Figure::Rest => |report| report.rest_core_percent,
    }
}

/// The figures of a run (or of merged ones) in a few words, and every flaw.
pub(super) fn cell(figure: Figure, report: &Report) -> String {
    let mut flaws = String::new();
    for (count, name) in [
        (report.lost, "lost"),
        (report.duplicated, "doubled"),
        (report.reordered, "out of order"),
        (report.refused, "refused"),
        (report.closed, "closed"),
        (report.retried, "connects retried"),
    ] {
        if count > 0 {
            flaws += &format!(", {count} {name}");
        }
    }
    if report.driver_bound() {
        flaws += ", the driver was the bottleneck";
    }
    let text = match figure {
        Figure::Delivery => format!(
            "{:.2} µs · {:.0}k/s · p50 {:.1} p99 {:.1} ms",
            report.server_cpu_us,
            report.per_second / 1_000.0,
            report.p50_ms,
            report.p99_ms
        ),
        Figure::Publish => format!(
            "{:.2} µs (Redis {:.2}) · {:.1}k/s",
            report.server_cpu_us,
            report.redis_cpu_us,
            report.per_second / 1_000.0
        ),
        Figure::Memory => {
            format!("{:.0} B, {:.0} B after 16 KB", report.idle_bytes, report.exercised_bytes)
        }
        Figure::Rest => format!(
            "{:.2} % of a core ({:.2} % not present) · Redis {:.1} commands/s",
            report.rest_core_percent, report.idle_core_percent, report.redis_commands_per_second
        ),
        Figure::Connect => {
            format!("{:.0} µs · {:.0}/s", report.connect_cpu_us, report.connects_per_second)
        }
    };
    if flaws.is_empty() { text } else { format!("{text} ({})", flaws.trim_start_matches(", ")) }
}

/// Medians as a markdown table, with the ratio to the floor.
pub(super) fn table(results: &Results) -> String {
    let about = &results.about;
    let mut text = format!(
        "{}. {} Load average at the beginning {}.\n\n\
         | work | server | figures | ± | × floor | lost/doubled/out of order | busy %: server, driver | driver µs |\n\
         |---|---|---|---|---|---|---|---|\n",
        [about.date.as_str(), about.machine.as_str()].join(", "),
        about.method,
        about.load
    );
    for outcome in &results.outcomes {
        let Some(row) = ROWS.iter().find(|row| row.name == outcome.row) else { continue };
        let main = main_figure(row.figure);
        let merged = merge(&outcome.runs);
        let (other_row, other_server, note) = match row.beside {
            Some(Beside::Same(with)) => (with, outcome.server.as_str(), " of WebSocket, plain"),
            Some(Beside::Floor(with)) => (with, "floor", ""),
            None => (row.name, "floor", ""),
        };
        let ratio = results.find(other_row, other_server).map_or(String::new(), |other| {
            format!("{:.2}{note}", median(&outcome.runs, main) / median(&other.runs, main))
        });
        let mark = if outcome.runs.iter().any(Report::driver_bound) { " ⚑" } else { "" };
        text += &format!(
            "| {} | {} | {}{mark} | {:.0} % | {ratio} | {}/{}/{} | {:.0}, {:.0} | {:.2} |\n",
            outcome.row,
            outcome.server,
            cell(row.figure, &merged),
            spread(&outcome.runs, main),
            merged.lost,
            merged.duplicated,
            merged.reordered,
            merged.server_percent,
            merged.driver_percent,
            merged.client_cpu_us,
        );
    }
    if results.outcomes.iter().any(|one| one.runs.iter().any(Report::driver_bound)) {
        text += "\n⚑ No good figure: the driver was over 90 % busy and the server was not; the rate is the driver's.\n";
    }
    let others = results.others_percent();
    text += &format!(
        "\nWhat else ran on this machine used up to {others:.0} % of a core during a cell.\n"
    );
    if !about.servers.is_empty() {
        text += &format!("\n* {}\n", about.servers.join("\n* "));
    }
    text
}

/// Medians of the figures, sums of the flaws: a flaw in any repetition shows.
fn merge(runs: &[Report]) -> Report {
    let sum = |figure: fn(&Report) -> u64| runs.iter().map(figure).sum();
    Report {
        per_second: median(runs, |run| run.per_second),
        server_cpu_us: median(runs, |run| run.server_cpu_us),
        redis_cpu_us: median(runs, |run| run.redis_cpu_us),
        client_cpu_us: median(runs, |run| run.client_cpu_us),
        server_percent: median(runs, |run| run.server_percent),
        driver_percent: median(runs, |run| run.driver_percent),
        p50_ms: median(runs, |run| run.p50_ms),
        p99_ms: median(runs, |run| run.p99_ms),
        connects_per_second: median(runs, |run| run.connects_per_second),
        connect_cpu_us: median(runs, |run| run.connect_cpu_us),
        idle_bytes: median(runs, |run| run.idle_bytes),
        exercised_bytes: median(runs, |run| run.exercised_bytes),
        idle_core_percent: median(runs, |run| run.idle_core_percent),
        rest_core_percent: median(runs, |run| run.rest_core_percent),
        redis_commands_per_second: median(runs, |run| run.redis_commands_per_second),
        lost: sum(|run| run.lost),
        duplicated: sum(|run| run.duplicated),
        reordered: sum(|run| run.reordered),
        refused: sum(|run| run.refused),
        retried: sum(|run| run.retried),
        closed: sum(|run| run.closed),
        ..Report::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Outcome;

    #[test]
    fn table_shows_the_median_its_ratio_to_the_floor_and_every_flaw() {
        let run = |cpu| Report { server_cpu_us: cpu, ..Report::default() };
        let outcome = |server: &str, figures: [f64; 3]| Outcome {
            row: ROWS[0].name.to_owned(),
            server: server.to_owned(),
            runs: figures.map(run).into(),
        };
        let mut results = Results {
            outcomes: vec![outcome("floor", [4.0, 9.0, 3.0]), outcome("carillon", [6.0, 1.0, 8.0])],
            ..Results::default()
        };
        let text = table(&results);
        assert!(text.contains("| carillon | 6.00 µs"), "{text}");
        assert!(text.contains("| 1.50 | 0/0/0 |") && !text.contains('⚑'), "{text}");
        results.outcomes[1].runs[0].lost = 2;
        results.outcomes[1].runs[2].lost = 1;
        results.outcomes[1].runs[1].driver_percent = 95.0;
        let text = table(&results);
        assert!(text.contains("(3 lost) ⚑") && text.contains("| 3/0/0 |"), "{text}");
        assert!(text.contains("No good figure"), "{text}");
    }
}
