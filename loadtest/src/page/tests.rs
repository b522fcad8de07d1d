//! The page of known results: well-formed, complete, and free of anything from outside.

use super::*;
use crate::sample::Usage;

fn run(cpu: f64) -> Report {
    let sample = |at: f64| Sample {
        at,
        delivered: 1_000.0 * at,
        p99_ms: 3.0,
        driver_percent: 40.0,
        processes: vec![
            Usage { pid: 10, name: "serv<er".to_owned(), percent: 50.0, resident_bytes: 5_000_000 },
            Usage { pid: 11, name: "redis".to_owned(), percent: 9.0, resident_bytes: 7_000_000 },
        ],
        ..Sample::default()
    };
    Report {
        scenario: "fanout".to_owned(),
        target: "plain".to_owned(),
        server_cpu_us: cpu,
        per_second: 20_000.0,
        measured_from: 1.0,
        seconds: 2.0,
        latency: vec![(0.0, 0.5), (1.0, 2.0), (2.0, 9.0)],
        samples: [1.0, 2.0, 3.0].map(sample).into(),
        ..Report::default()
    }
}

fn results() -> Results {
    let outcome = |server: &str, cpus: &[f64]| Outcome {
        row: "1 × \"1,000\" & more".to_owned(),
        server: server.to_owned(),
        runs: cpus.iter().map(|cpu| run(*cpu)).collect(),
    };
    let mut results = Results {
        outcomes: vec![
            outcome("floor", &[4.0, 4.4, 3.9]),
            outcome("carillon", &[5.0]),
            outcome("<script>", &[8.0]),
        ],
        ..Results::default()
    };
    results.outcomes[2].runs[0].lost = 2;
    results.outcomes[2].runs[0].driver_percent = 99.0;
    results
}

/// Every element is closed by its own end, every attribute quoted; what is void in HTML needs no end.
fn check(html: &str) -> usize {
    const VOID: [&str; 2] = ["meta", "br"];
    let body = html.strip_prefix("<!doctype html>").expect("a doctype");
    let (head, rest) = body.split_once("<style>").expect("a style");
    let (_, tail) = rest.split_once("</style>").expect("an end of the style");
    let (text, mut open, mut count) = (format!("{head}{tail}"), Vec::new(), 0);
    let mut rest = text.as_str();
    while let Some(at) = rest.find('<') {
        let end = at + rest[at..].find('>').expect("an end of the tag");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        count += 1;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closed by {tag}");
            continue;
        }
        let name = tag.split_whitespace().next().expect("a name");
        if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    count
}

#[test]
fn page_of_a_bench_is_well_formed_and_needs_nothing_from_outside() {
    let html = render("A <title>", &results());
    assert!(check(&html) > 100);
    for foreign in ["http:", "https:", "src=", "@import", "<script", "url("] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    assert!(!html.contains("NaN") && !html.contains("inf"));
    assert!(html.contains("&lt;script&gt;") && html.contains("serv&lt;er (10)"));
    assert!(html.contains("× 1.25"), "5.0 over the median 4.0");
    assert!(html.contains("2 / 0 / 0") && html.contains("⚑"), "flaws and a driver at its limit");
    for plot in ["Latency by percentile", "Deliveries over time", "Resident memory", "99 %"] {
        assert!(html.contains(plot), "{plot}");
    }
}

#[test]
fn page_of_a_single_run_without_samples_is_well_formed_too() {
    for scenario in ["idle", "connect", "publish", "fanout"] {
        let report = Report { scenario: scenario.to_owned(), ..Report::default() };
        let outcome =
            Outcome { row: scenario.to_owned(), server: "plain".to_owned(), runs: vec![report] };
        let html = render("One", &Results { outcomes: vec![outcome], ..Results::default() });
        check(&html);
        assert!(!html.contains("NaN") && !html.contains("inf"), "{scenario}");
    }
}
