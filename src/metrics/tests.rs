//! The exposition as text, of a view made up here.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::api::View;
use crate::api::view::{Counts, DirectorState, Status};
use crate::devices::{CordonBy, HostMode};
use crate::inbox::HeldFor;
use crate::item::{Outcome, Reason};

fn view(tallies: Tallies) -> Arc<View> {
    let status = Status {
        version: "1.2.3".to_owned(),
        counts: Counts { ignored: 4, done: 7, ..Counts::default() },
        ..Status::empty("/r".to_owned(), HostMode::Cpu, DirectorState::Paused)
    };
    Arc::new(View { number: 1, status, live: Vec::new(), tallies })
}

fn written(metrics: &Arc<Metrics>, tallies: Tallies, format: Format) -> String {
    scrape(metrics, &view(tallies), Duration::from_millis(1500), format).expect("an exposition")
}

fn some() -> Tallies {
    let ready = RouteTally { ready: 2, running: 1, ..RouteTally::default() };
    Tallies {
        routes: [("a \"b\"".to_owned(), ready)].into(),
        unrouted: 3,
        held: vec![(HeldFor::NoRoute, 3)],
        devices: vec![DeviceTally { id: "GPU-1".to_owned(), energy_joules: Some(1.5), cordoned: Some(CordonBy::Hand) }],
        scanned: true,
    }
}

#[test]
fn what_is_known_is_told_in_both_formats() {
    let metrics = Arc::new(Metrics::new(Sources::default()));
    let counts = metrics.routes.of("a \"b\"");
    counts.count_end(Outcome::Failed, Some(Reason::Timeout));
    counts.waiting.count(Duration::from_millis(20));
    let page = written(&metrics, some(), Format::OpenMetrics);
    let plain = written(&metrics, some(), Format::Text);
    let check = |line: &str| {
        assert!(page.lines().any(|it| it == line), "{line}\n{page}");
        assert!(plain.lines().any(|it| it == line), "{line}\n{plain}");
    };
    check(r#"gamdok_build_info{version="1.2.3"} 1"#);
    check(r#"gamdok_director_state{state="paused"} 1"#);
    check(r#"gamdok_director_state{state="running"} 0"#);
    check("gamdok_uptime_seconds 1.5");
    check(r#"gamdok_items{route="a \"b\"",state="ready"} 2"#);
    check(r#"gamdok_items{state="held"} 3"#);
    check(r#"gamdok_items{state="ignored"} 4"#);
    check(r#"gamdok_items_held{reason="no-route"} 3"#);
    check(r#"gamdok_jobs_kept{outcome="done"} 7"#);
    check(r#"gamdok_items_ended_total{route="a \"b\"",outcome="failed",reason="timeout"} 1"#);
    check(r#"gamdok_items_ended_total{route="a \"b\"",outcome="failed",reason="exit"} 0"#);
    check(r#"gamdok_items_ended_total{route="a \"b\"",outcome="done"} 0"#);
    check(r#"gamdok_item_waiting_seconds_count{route="a \"b\""} 1"#);
    check(r#"gamdok_item_waiting_seconds_sum{route="a \"b\""} 0.02"#);
    check(r#"gamdok_device_cordoned{device="GPU-1",by="hand"} 1"#);
    check(r#"gamdok_device_energy_joules_total{device="GPU-1"} 1.5"#);
    check(r#"gamdok_events_dropped_total{queue="program"} 0"#);
    assert!(page.ends_with("# EOF\n") && !plain.contains("EOF"));
}

#[test]
fn what_is_unknown_is_absent() {
    let metrics = Arc::new(Metrics::new(Sources::default()));
    let page = written(&metrics, Tallies { scanned: false, ..some() }, Format::OpenMetrics);
    let check = |beginning: &str, there: bool| {
        assert_eq!(page.lines().any(|line| line.starts_with(beginning)), there, "{beginning}\n{page}");
    };
    // Nobody has looked at the inbox or the disk yet; jobs are known.
    check("gamdok_items{route=\"/others\",state=\"running\"} 1", true);
    check("gamdok_items{route=\"/others\",state=\"ready\"}", false);
    check("gamdok_items{state=\"held\"}", false);
    check("gamdok_items_held", false);
    check("gamdok_space", false);
    check("# HELP gamdok_space", false);
    check("gamdok_resident_workers", false);
    check("gamdok_device_power_watts", false);
    assert!(!page.contains("NaN"), "{page}");
}

#[test]
fn a_client_gets_the_format_that_it_asks_for() {
    let check = |accept: Option<&str>, expected| assert_eq!(Format::accepted(accept), expected, "{accept:?}");
    check(None, Format::OpenMetrics);
    check(Some("*/*"), Format::OpenMetrics);
    check(Some("text/plain"), Format::Text);
    check(Some("text/plain;version=0.0.4;q=0.5,*/*;q=0.1"), Format::Text);
    let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    check(Some(prometheus), Format::OpenMetrics);
}
