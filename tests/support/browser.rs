//! A headless Chromium, spoken to over its DevTools pipe (<https://chromedevtools.github.io/devtools-protocol>): descriptors
//! 3 and 4, JSON messages that end with a NUL.

#![allow(dead_code, unreachable_pub, reason = "each test and comparison uses its own part")]

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Browser {
    child: Child,
    pipe: ChildStdin,
    heard: Receiver<Value>,
    session: String,
    sent: u64,
    /// What the page complained of.
    complaints: VecDeque<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// None where no Chromium is installed, unless `GAMDOK_TEST_CHROMIUM` names one, as it does where all is to be tested.
    pub fn start() -> Option<Browser> {
        let named = std::env::var_os("GAMDOK_TEST_CHROMIUM");
        let program = named.clone().unwrap_or_else(|| "chromium".into());
        if named.is_none() && !Command::new(&program).arg("--version").output().is_ok_and(|out| out.status.success()) {
            eprintln!("skipped: there is no `chromium`");
            return None;
        }
        let profile = tempfile::tempdir().expect("a folder");
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh"]).arg(program);
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
        ]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        // What it keeps in a home lies in the profile too.
        command
            .env("HOME", profile.path())
            .env("XDG_CONFIG_HOME", profile.path())
            .env("XDG_CACHE_HOME", profile.path());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a shell");
        let (pipe, out) = (child.stdin.take().expect("its input"), child.stdout.take().expect("its output"));
        let (tell, heard) = mpsc::channel();
        std::thread::spawn(move || {
            for message in BufReader::new(out).split(0) {
                let Ok(message) = message else { return };
                if tell.send(serde_json::from_slice(&message).expect("JSON")).is_err() {
                    return;
                }
            }
        });
        let (session, complaints) = (String::new(), VecDeque::new());
        let mut browser = Browser { child, pipe, heard, session, sent: 0, complaints, _profile: profile };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({ "id": self.sent, "method": method, "params": params });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.pipe
            .write_all(message.to_string().as_bytes())
            .and_then(|()| self.pipe.write_all(b"\0"))
            .expect("it listens");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = self.heard.recv_timeout(left).unwrap_or_else(|_| panic!("no answer to {method}"));
            if answer["id"] == json!(self.sent) {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.note(&answer);
        }
    }

    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complaints.push_back(params["exceptionDetails"].to_string()),
            Some("Runtime.consoleAPICalled")
                if ["error", "warning"].contains(&params["type"].as_str().unwrap_or("")) =>
            {
                self.complaints.push_back(params["args"].to_string());
            }
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                self.complaints.push_back(params["entry"].to_string());
            }
            _ => {}
        }
    }

    /// What the page complained of since this was asked last.
    pub fn complaints(&mut self) -> Vec<String> {
        // An answer to this one comes after all that was said before.
        self.eval("1");
        self.complaints.drain(..).collect()
    }

    pub fn go(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
    }

    pub fn size(&mut self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
    }

    pub fn dark(&mut self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] });
        self.call("Emulation.setEmulatedMedia", features);
    }

    /// The value of an expression; promises are awaited.
    pub fn eval(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true, looked at with each frame; it fails with what the page shows then.
    pub fn until(&mut self, what: &str, expression: &str) {
        let waits = format!(
            "new Promise((resolve) => {{ const end = Date.now() + 45000; const look = () => {{ let is = false; \
             try {{ is = {expression}; }} catch {{}} if (is || Date.now() > end) resolve(Boolean(is)); \
             else setTimeout(look, 20); }}; look(); }})"
        );
        if self.eval(&waits) != json!(true) {
            let shown = self.eval("document.body ? document.body.innerText : ''");
            panic!("{what}: {expression} stays false on the page\n{}", shown.as_str().unwrap_or_default());
        }
    }

    /// Presses a key as a person does.
    pub fn press(&mut self, key: &str, code: &str, number: u32) {
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({ "type": kind, "key": key, "code": code, "windowsVirtualKeyCode": number });
            if key == "Enter" && kind == "keyDown" {
                event["text"] = json!("\r");
            }
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Keeps a picture of the whole page where `GAMDOK_TEST_PICTURES` names a folder, for somebody to look at.
    pub fn picture(&mut self, name: &str) {
        use base64::Engine as _;
        let Some(folder) = std::env::var_os("GAMDOK_TEST_PICTURES") else { return };
        let data = self.call("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": true }));
        let data = data["data"].as_str().expect("a picture");
        let bytes = base64::engine::general_purpose::STANDARD.decode(data).expect("base64");
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), bytes).expect("written");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let message = json!({ "id": 0, "method": "Browser.close" });
        let _ = self.pipe.write_all(message.to_string().as_bytes()).and_then(|()| self.pipe.write_all(b"\0"));
        let deadline = Instant::now() + Duration::from_secs(10);
        // Its end closes the pipe; one that stays is killed.
        while self.heard.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
