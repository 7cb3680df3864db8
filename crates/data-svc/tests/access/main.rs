//! Who is let in: tokens, scopes, and the names that an open service answers to, over real HTTP on both services.

mod audit;
mod hosts;
mod list;
mod rate;
mod table;

use std::fs;
use std::path::PathBuf;

use devstack::TempDir;
use devstack::http::{self, Response};
use devstack::{Service, ServiceBuilder, Stack};

/// A client's token, and its line of the list.
struct Client {
    token: String,
    line: String,
}

impl Client {
    /// A new token, as `user-svc token new` makes it.
    fn new(name: &str, scopes: &str) -> Client {
        let made = ServiceBuilder::new("user-svc").run(&["token", "new", "--name", name, "--scopes", scopes]);
        assert!(made.status.success());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8").trim().to_owned();
        Client { token: text(made.stdout), line: text(made.stderr) }
    }

    /// The same token, which has expired.
    fn expired(name: &str, scopes: &str) -> Client {
        let mut client = Client::new(name, scopes);
        client.line.push_str(" until=2020-01-01T00:00:00Z");
        client
    }

    fn authorization(&self) -> String {
        format!("Bearer {}", self.token)
    }
}

/// A file with a token list, replaced as a whole.
struct ListFile {
    folder: TempDir,
}

impl ListFile {
    fn of(clients: &[&Client]) -> ListFile {
        let file = ListFile { folder: TempDir::for_test() };
        file.write(&lines(clients));
        file
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("tokens")
    }

    fn write(&self, text: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, text).expect("the folder is there");
        fs::rename(new, self.path()).expect("the folder is there");
    }
}

fn lines(clients: &[&Client]) -> String {
    clients.iter().map(|client| format!("{}\n", client.line)).collect()
}

/// Both services, which ask for tokens.
struct Services {
    _stack: Stack,
    user_svc: Service,
    data_svc: Service,
}

impl Services {
    fn start(list: &ListFile) -> Services {
        let stack = Stack::shared();
        let path = list.path().display().to_string();
        let user_svc = stack.user_svc().env("API_TOKENS_FILE", &path).start();
        let data_svc = stack.data_svc().env("API_TOKENS_FILE", &path).start();
        Services { _stack: stack, user_svc, data_svc }
    }

    fn both(&self) -> [&Service; 2] {
        [&self.user_svc, &self.data_svc]
    }
}

/// Sends a request with this `Authorization`.
fn send(service: &Service, method: &str, path: &str, authorization: Option<&str>) -> Response {
    let body = match (method, path) {
        ("POST", "/register") => r#"{"name": "john", "info": "some info"}"#,
        ("PUT", _) => r#"{"info": "new info"}"#,
        _ => "",
    };
    let mut headers = vec![("Content-Type", "application/json")];
    headers.extend(authorization.map(|authorization| ("Authorization", authorization)));
    http::send(method, &service.url_of(path), &headers, body)
}

/// The slug of the problem in an answer; empty if it is none.
fn problem(answer: &Response) -> String {
    if answer.header("content-type") != Some("application/problem+json") {
        return String::new();
    }
    answer.json()["type"].as_str().unwrap_or_default().replace("/problems/", "")
}
