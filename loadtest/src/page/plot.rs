//! Line plots as SVG whose colours are the page's: classes, no colour of their own, so that light and dark both fit.
//! That is what a plotting library would not give; ticks and polylines are little beside it.
//!
//! Knows numbers and names, nothing of runs.

use super::escape;
use std::fmt::Write as _;

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 30.0;

/// One line.
pub(super) struct Series {
    /// What it is of.
    pub(super) name: String,
    /// Number of its colour's class.
    pub(super) colour: usize,
    /// In the order of x.
    pub(super) points: Vec<(f64, f64)>,
}

/// How values become places.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// From 0.
    Linear,
    /// By factors of ten.
    Log,
    /// 0, 90 %, 99 %, 99.9 % …
    Nines,
}

/// A plot of several lines.
pub(super) struct Plot<'a> {
    /// Above it.
    pub(super) title: &'a str,
    /// Of the axes, with units.
    pub(super) x: (&'a str, Scale),
    /// See `x`.
    pub(super) y: (&'a str, Scale),
    /// The part of x that was measured.
    pub(super) shaded: Option<(f64, f64)>,
    /// The lines.
    pub(super) series: Vec<Series>,
}

/// From the least to the most that is shown.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Axis {
    scale: Scale,
    least: f64,
    most: f64,
}

impl Axis {
    fn over(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let positive = |value: &f64| value.is_finite() && (scale != Scale::Log || *value > 0.0);
        let (least, most) = values
            .filter(positive)
            .fold((f64::MAX, 0.0_f64), |(least, most), value| (least.min(value), most.max(value)));
        let (least, most) = match scale {
            Scale::Linear => (0.0, if most > 0.0 { most * 1.05 } else { 1.0 }),
            Scale::Nines => (0.0, most.max(1.0)),
            Scale::Log if most == 0.0 => (0.1, 1.0),
            // A decade at least, or a flat line would fill the height with its noise.
            Scale::Log => ((least * 0.9).min(most / 10.0), most * 1.1),
        };
        Self { scale, least, most }
    }

    /// Place of a value, 0 to 1.
    fn place(self, value: f64) -> f64 {
        let place = match self.scale {
            Scale::Log => (value.max(self.least) / self.least).ln() / (self.most / self.least).ln(),
            Scale::Linear | Scale::Nines => (value - self.least) / (self.most - self.least),
        };
        place.clamp(0.0, 1.0)
    }

    fn ticks(self) -> Vec<f64> {
        match self.scale {
            Scale::Nines => (0..=self.most as i32).map(f64::from).collect(),
            Scale::Linear => {
                let rough = self.most / 5.0;
                let power = 10_f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].map(|by| by * power);
                let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough);
                (0..=(self.most / step) as i32).map(|k| f64::from(k) * step).collect()
            }
            Scale::Log => {
                let decades = (self.most / self.least).log10();
                let steps: &[f64] = if decades > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let (first, last) = (self.least.log10().floor(), self.most.log10().floor());
                (first as i32..=last as i32)
                    .flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)))
                    .filter(|tick| (self.least..=self.most).contains(tick))
                    .collect()
            }
        }
    }

    fn label(self, tick: f64) -> String {
        if self.scale != Scale::Nines {
            return short(tick);
        }
        match tick as i32 {
            0 => "0".to_owned(),
            1 => "90 %".to_owned(),
            2 => "99 %".to_owned(),
            nines => format!("99.{} %", "9".repeat(nines as usize - 2)),
        }
    }
}

/// A number in few letters: 1.2M, 350k, 12, 0.5.
pub(super) fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        size if size >= 999.5e6 => (value / 1e9, "G"),
        size if size >= 999.5e3 => (value / 1e6, "M"),
        size if size >= 9_999.5 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match scaled.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 => 2,
        _ => 3,
    };
    let text = format!("{scaled:.digits$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

impl Plot<'_> {
    /// The figure with its caption.
    pub(super) fn html(&self) -> String {
        let all = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::over(self.x.1, all().map(|point| point.0));
        let y = Axis::over(self.y.1, all().map(|point| point.1));
        let at_x = |value| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
        let at_y = |value| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM);
        let mut svg = String::new();
        if let Some((from, to)) = self.shaded {
            let (from, to) = (at_x(from), at_x(to));
            let (width, height) = (to - from, HEIGHT - TOP - BOTTOM);
            let _ = write!(
                svg,
                "<rect class=\"shade\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\"/>"
            );
        }
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for tick in y.ticks() {
            let (at, text) = (at_y(tick), y.label(tick));
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                LEFT - 6.0,
                at + 4.0
            );
        }
        for tick in x.ticks() {
            let (at, text) = (at_x(tick), x.label(tick));
            let _ = write!(
                svg,
                "<line class=\"axis\" x1=\"{at:.1}\" y1=\"{bottom}\" x2=\"{at:.1}\" y2=\"{:.1}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                bottom + 4.0,
                bottom + 17.0
            );
        }
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{bottom}\" x2=\"{right}\" y2=\"{bottom}\"/>"
        );
        for Series { name, colour, points } in &self.series {
            let places: Vec<String> = points
                .iter()
                .map(|(one, other)| format!("{:.1},{:.1}", at_x(*one), at_y(*other)))
                .collect();
            let last = points.last().map(|point| short(point.1)).unwrap_or_default();
            let title = format!("<title>{}: {last}</title>", escape(name));
            if let [place] = &places[..] {
                let (cx, cy) = place.split_once(',').unwrap_or_default();
                let _ = write!(
                    svg,
                    "<circle class=\"spot c{colour}\" cx=\"{cx}\" cy=\"{cy}\" r=\"3\">{title}</circle>"
                );
            } else {
                let places = places.join(" ");
                let _ = write!(
                    svg,
                    "<polyline class=\"path c{colour}\" points=\"{places}\">{title}</polyline>"
                );
            }
        }
        let (title, x, y) = (escape(self.title), escape(self.x.0), escape(self.y.0));
        format!(
            "<figure><figcaption>{title} · {y}</figcaption>\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">{svg}\
             <text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{x}</text></svg></figure>\n",
            HEIGHT - 1.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_few_round_ticks_that_hold_every_value() {
        let linear = Axis::over(Scale::Linear, [3.0, 183_000.0].into_iter());
        assert_eq!(linear.ticks(), [0.0, 50_000.0, 100_000.0, 150_000.0]);
        let log = Axis::over(Scale::Log, [0.0, 3.5, 180.0].into_iter());
        assert_eq!(log.ticks(), [5.0, 10.0, 20.0, 50.0, 100.0]);
        assert!(log.place(3.5) > 0.0 && log.place(180.0) < 1.0 && log.place(0.0) == 0.0);
        let nines = Axis::over(Scale::Nines, [0.0, 4.2].into_iter());
        let labels: Vec<String> = nines.ticks().into_iter().map(|tick| nines.label(tick)).collect();
        assert_eq!(labels, ["0", "90 %", "99 %", "99.9 %", "99.99 %"]);
        for empty in [Scale::Linear, Scale::Log, Scale::Nines] {
            let axis = Axis::over(empty, std::iter::empty());
            assert!(axis.place(1.0).is_finite() && !axis.ticks().is_empty(), "{empty:?}");
        }
    }

    #[test]
    fn numbers_are_short() {
        let texts: Vec<String> =
            [0.0, 0.5, 4.25, 12.0, 350_000.0, 1_290_000.0, 2_500.0].map(short).into();
        assert_eq!(texts, ["0", "0.5", "4.25", "12", "350k", "1.29M", "2500"]);
    }
}
