//! How soon the page is there: the browser's first paint, and the first rows of the queue, with nothing waiting and with
//! 10,000 items; and the director's memory meanwhile. In a headless Chromium; the empty director is the floor.

use std::net::TcpListener;

#[path = "../tests/support/browser.rs"]
mod browser;
mod common;

use browser::Browser;
use common::{Bench, median, number};

fn main() {
    if !common::asked_to_measure() {
        return;
    }
    let Some(mut browser) = Browser::start() else { return };
    let (items, rounds) = (number("GAMDOK_BENCH_ITEMS", 10_000), number("GAMDOK_BENCH_ROUNDS", 3));
    let bench = Bench::new("page");
    browser.size(1440, 1000);
    for (name, count) in [("nothing waits", 0), ("they wait", items)] {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port();
        let config = format!(
            "[devices]\nuse = \"cpu\"\ncpu_slots = 2\n[api]\nlisten = \"127.0.0.1:{port}\"\n[[route]]\nname = \"r\"\n\
             command = [\"true\"]\n"
        );
        let root = bench.root(&format!("items-{count}"), &config);
        let director = root.start();
        // Nothing starts, so that as many wait each time.
        let paused = common::gamdok().args(["pause", "--root"]).arg(&root.dir).arg("-q").output().expect("gamdok");
        assert!(paused.status.success());
        root.stage(count).iter().for_each(|item| root.drop_in(item));
        let (mut painted, mut shown) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            browser.go("about:blank");
            browser.go(&format!("http://127.0.0.1:{port}/"));
            let rows = count.clamp(1, 100);
            browser.until("the rows", &format!("document.querySelectorAll('#queue tbody tr').length >= {rows}"));
            shown.push(browser.eval("performance.now()").as_f64().expect("a time"));
            let paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime";
            browser.until("the paint", &format!("{paint} > 0"));
            painted.push(browser.eval(paint).as_f64().expect("a time"));
        }
        let memory = director.kilobytes("VmHWM");
        println!(
            "{name} ({count}): first paint {:.0} ms, the queue {:.0} ms, VmHWM {:.1} MiB",
            median(&mut painted),
            median(&mut shown),
            memory as f64 / 1024.0
        );
        director.stop();
    }
}
