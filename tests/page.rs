//! The page, in a real headless Chromium, against the built binary.

#[path = "support/browser.rs"]
mod browser;
mod support;

use std::fs;
use std::net::TcpListener;

use browser::Browser;
use serde_json::json;
use support::World;

/// A port that was free a moment ago.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port()
}

fn settings(port: u16, devices: &str, api: &str) -> String {
    format!("[devices]\n{devices}\n[api]\nlisten = \"127.0.0.1:{port}\"\n{api}\n")
}

const SIM: &str = "use = \"sim\"\nsim = { gpus = 3, memory = \"80GiB\" }\nslots = 1";

/// Runs until the file `gate` is there; fails for names that start with `bad`.
fn routes(world: &World) -> String {
    let script = "echo \"working on $2\"; case \"$2\" in bad*) echo 'no header' >&2; exit 65;; slow*) \
                  echo '{\"type\":\"progress\",\"fraction\":0.5,\"message\":\"halfway\"}' >&3; \
                  until [ -e \"$1\" ]; do sleep 0.05; done;; esac";
    let command =
        json!(["sh", "-c", script.replace('{', "{{").replace('}', "}}"), "sh", world.scratch("gate"), "{name}"]);
    format!("[[route]]\nname = \"embed\"\nretries = 0\ncommand = {command}\n")
}

#[test]
fn a_person_sees_what_happens_acts_and_a_restart_is_survived() {
    let Some(mut browser) = Browser::start() else { return };
    let port = port();
    let world = World::new("");
    let config = routes(&world);
    world.configure(&settings(port, SIM, ""), &config);
    let service = world.start();
    browser.size(1440, 1000);
    browser.go(&format!("http://127.0.0.1:{port}/"));
    browser.until("the devices", "document.querySelectorAll('.tile.free').length === 4");
    browser.until("the state", "document.getElementById('state').textContent === 'running'");
    assert_eq!(browser.complaints(), [] as [String; 0]);

    // What happens is shown without a reload: at most a second later where nothing else keeps the machine busy.
    let hostile = "slow <img src=x onerror=\"document.title='broken'\">";
    world.drop_file(hostile, b"x");
    browser.until("it runs on a tile", "document.querySelector('.tile.leased li button.name') !== null");
    browser.until("its progress", "document.querySelector('.tile progress')?.value === 0.5");
    browser.until("what it says", "document.querySelector('.tile .said')?.textContent === 'halfway'");
    let name = browser.eval("document.querySelector('.tile.leased li button.name').textContent");
    assert_eq!(name, json!(hostile), "a name is text, whatever it holds");
    for n in 0..4 {
        world.drop_file(format!("slow-{n}"), b"x");
    }
    let waits = "[...document.querySelectorAll('#queue tbody tr')].some((row) => row.textContent.includes('slow-3') && \
                 row.cells[2].textContent.length > 5 && !row.querySelector('.badge.running'))";
    browser.until("why one waits", waits);
    world.drop_file("bad.wav", b"x");
    world.drop_file("held", b"x");
    browser.picture("wide-light-running");

    // The focus stays where it is, whatever is drawn anew around it or in its place.
    browser.eval("[...document.querySelectorAll('#queue tbody tr')].pop().querySelector('[data-act=cancel]').focus()");
    for n in 0..3 {
        world.drop_file(format!("slow-focus-{n}"), b"x");
    }
    browser.until("they are shown", "document.querySelectorAll('#queue tbody tr').length >= 10");
    assert_eq!(browser.eval("document.activeElement.dataset.act"), json!("cancel"));

    // An item's own view, its log as it grows, by the keyboard alone.
    browser.eval("document.querySelector('.tile.leased li button.name').focus()");
    browser.press("Enter", "Enter", 13);
    browser
        .until("its log", "document.querySelector('#job[open] .log')?.textContent.startsWith('working on slow <img')");
    browser.picture("wide-light-job");
    browser.press("Escape", "Escape", 27);
    browser.until("it closes", "document.querySelector('#job[open]') === null");
    browser.until("the focus is back", "document.activeElement.classList.contains('name')");

    // An action that hurts is asked first, and works.
    browser.eval("document.querySelector('[data-act=drain]').click()");
    browser.until("it asks", "document.querySelector('#ask[open]') !== null");
    browser.picture("wide-light-ask");
    browser.eval("document.querySelector('#ask button[value=no]').click()");
    browser.until("nothing was done", "document.querySelector('#ask[open]') === null");
    assert_eq!(world.status()["state"], "running");
    browser.eval("document.querySelector('[data-act=pause]').click()");
    browser.until("paused", "document.getElementById('state').textContent === 'paused'");
    assert_eq!(world.status()["state"], "paused");
    browser.eval("document.querySelector('[data-act=resume]').click()");
    browser.until("running again", "document.getElementById('state').textContent === 'running'");
    browser.eval("{ const it = [...document.querySelectorAll('.tile')].pop().querySelector('[data-act=cordon]'); it.focus(); it.click(); }");
    browser.until("it asks", "document.querySelector('#ask[open]') !== null");
    browser.eval("document.querySelector('#ask button[value=yes]').click()");
    browser.until("cordoned", "[...document.querySelectorAll('.tile')].pop().textContent.includes('cordoned by hand')");
    browser.until("the focus is on what undoes it", "document.activeElement.textContent === 'Uncordon'");

    fs::write(world.scratch("gate"), "").expect("open the gate");
    browser.until(
        "a failure with its last lines",
        "document.querySelector('#failed pre')?.textContent.includes('no header')",
    );
    world.until("all have ended", |status| status["counts"]["done"] == 9 && status["counts"]["failed"] == 1);
    browser.until("the queue is empty", "document.querySelector('#queue .empty') !== null");
    browser.until("the timeline", "document.querySelectorAll('.strip button.done').length >= 5");
    browser.until("a failed one is marked", "document.querySelector('.strip button.failed') !== null");
    browser.until("the charts", "document.querySelectorAll('.charts canvas').length === 2");
    browser.picture("wide-light");
    browser.dark(true);
    browser.size(390, 844);
    browser.until("no scrolling sideways", "document.documentElement.scrollWidth <= 390");
    browser.picture("narrow-dark");
    browser.size(1440, 1000);
    browser.picture("wide-dark");
    browser.dark(false);
    browser.size(390, 844);
    browser.picture("narrow-light");
    browser.size(1440, 1000);
    assert_eq!(browser.complaints(), [] as [String; 0]);

    // The director goes, and comes back: the page says so, and goes on by itself.
    assert_eq!(service.stop(), 0);
    browser.until("it says so", "document.getElementById('link').hidden === false");
    let _refused_meanwhile = browser.complaints();
    let service = world.start();
    browser.until("it is back", "document.getElementById('link').hidden === true");
    world.drop_file("after", b"x");
    browser.until("what happens since", "document.getElementById('summary').textContent.includes('10 done')");
    assert_eq!(browser.eval("document.title.includes('broken')"), json!(false));
    assert_eq!(service.stop(), 0);
}

#[test]
fn where_a_token_is_needed_the_page_asks_for_it() {
    let Some(mut browser) = Browser::start() else { return };
    let port = port();
    let world = World::new("");
    let token = world.scratch("token");
    fs::write(&token, "open-sesame\n").expect("the token");
    let config = routes(&world);
    world.configure(&settings(port, "use = \"cpu\"", &format!("token_file = {token:?}")), &config);
    let service = world.start();
    browser.go(&format!("http://127.0.0.1:{port}/"));
    browser.until("it asks", "document.querySelector('#ask[open] #token') !== null");
    let give = |browser: &mut Browser, text: &str| {
        browser.eval(&format!("document.getElementById('token').value = {}", json!(text)));
        browser.eval("document.querySelector('#ask button').click()");
    };
    give(&mut browser, "wrong");
    browser.until("it asks again", "document.querySelector('#ask[open]')?.textContent.includes(\"isn't the one\")");
    give(&mut browser, "open-sesame");
    browser.until("the device", "document.querySelectorAll('.tile').length === 1");
    assert_eq!(service.stop(), 0);
}
