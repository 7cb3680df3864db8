//! A headless Chromium, driven by the DevTools protocol through a pipe: a JSON object per message, with a NUL after it.

use std::env::split_paths;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

/// The names of Chromium, by system.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
/// How long one step may take: starting takes a few seconds on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Root has no sandbox; the rest keeps Chromium from calls of its own.
const ARGUMENTS: [&str; 10] = [
    // What an attacker's name server says of their own name.
    "--host-resolver-rules=MAP rebound.test 127.0.0.1",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
];

/// A browser with one page. Dropping it ends the process.
pub struct Browser {
    process: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    /// What has happened on the page since it was opened.
    events: Vec<Value>,
    /// The page, once there is one.
    session: Option<String>,
    last_id: u64,
    _profile: TempDir,
}

impl Browser {
    /// Starts the Chromium on PATH. `None` if there is none.
    pub fn start() -> Option<Self> {
        let program = program()?;
        let profile = TempDir::new().expect("a folder");
        // Chromium reads commands from descriptor 3 and writes messages to 4.
        let mut command = Command::new("sh");
        command.args(["-c", r#"exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#, "sh"]).arg(program);
        command.args(ARGUMENTS).arg(format!("--user-data-dir={}", profile.path().display()));
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sh runs");
        let commands = process.stdin.take().expect("piped");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let (sender, messages) = channel();
        thread::spawn(move || {
            for message in output.split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("JSON");
                // Nobody listens once the browser is dropped.
                let _ = sender.send(message);
            }
        });
        let mut browser = Self {
            process,
            commands,
            messages,
            events: vec![],
            session: None,
            last_id: 0,
            _profile: profile,
        };
        browser.attach();
        Some(browser)
    }

    fn attach(&mut self) {
        let page = self.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = self.call("Target.attachToTarget", json!({"targetId": page, "flatten": true}));
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Network", "Runtime", "Log"] {
            self.call(&format!("{domain}.enable"), json!({}));
        }
    }

    /// Opens `url` in a window of this width, and waits until it and what it refers to are loaded.
    pub fn open(&mut self, url: &str, width: u32) {
        self.events.clear();
        let window = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 640});
        self.call("Emulation.setDeviceMetricsOverride", window);
        let opened = self.call("Page.navigate", json!({"url": url}));
        assert!(opened["errorText"].is_null(), "{url}: {opened}");
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            let event = self.receive();
            self.events.push(event);
        }
    }

    /// Evaluates an expression on the page; a promise is awaited. Panics if it throws.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let expression = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut result = self.call("Runtime.evaluate", expression);
        assert!(result["exceptionDetails"].is_null(), "{result}");
        result["result"]["value"].take()
    }

    /// Waits until the condition, a JavaScript expression, holds after some change of the page.
    pub fn wait_until(&mut self, condition: &str) {
        self.evaluate(&format!(
            "new Promise(resolve => {{
                const look = () => {{ if ({condition}) resolve(); }};
                const all = {{ subtree: true, childList: true, attributes: true, characterData: true }};
                new MutationObserver(look).observe(document, all);
                look();
            }})"
        ));
    }

    /// What has failed since the page was opened: requests, scripts, and all that the console shows as an error.
    pub fn failures(&self) -> Vec<String> {
        let has_failed = |event: &&Value| {
            let parameters = &event["params"];
            match event["method"].as_str() {
                Some("Network.responseReceived") => {
                    parameters["response"]["status"].as_u64().is_none_or(|status| status >= 400)
                }
                Some("Network.loadingFailed" | "Runtime.exceptionThrown") => true,
                Some("Log.entryAdded") => parameters["entry"]["level"] == "error",
                _ => false,
            }
        };
        self.events.iter().filter(has_failed).map(Value::to_string).collect()
    }

    /// The addresses that were requested over the network since the page was opened.
    pub fn requests(&self) -> Vec<&str> {
        let requests = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        let addresses = requests.filter_map(|event| event["params"]["request"]["url"].as_str());
        addresses.filter(|address| !address.starts_with("data:")).collect()
    }

    /// Sends a command, and returns its result.
    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last_id += 1;
        let mut command = json!({"id": self.last_id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            command["sessionId"] = session.as_str().into();
        }
        write!(self.commands, "{command}\0").expect("Chromium runs");
        loop {
            let mut message = self.receive();
            if message["id"] == self.last_id {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].take();
            }
            self.events.push(message);
        }
    }

    fn receive(&self) -> Value {
        self.messages.recv_timeout(TIMEOUT).expect("Chromium answers")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // By a command, which also ends the processes that write to the profile. It fails if Chromium has ended by itself.
        let _ = write!(self.commands, "{}\0", json!({"id": 0, "method": "Browser.close"}));
        while self.messages.recv_timeout(TIMEOUT).is_ok() {}
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = split_paths(&path).collect();
    let candidates = NAMES.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    candidates.into_iter().find(|candidate| candidate.is_file())
}
