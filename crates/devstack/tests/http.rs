//! The HTTP client: what it sends, and how it reads answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;

use devstack::http::{Connection, get, raw, send};

/// A server that answers one request with these bytes, and returns the request.
fn answer_once(answer: &'static [u8]) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let address = listener.local_addr().expect("it is bound");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client connects");
        let mut request = Vec::new();
        let mut buffer = [0; 1024];
        while !is_complete(&request) {
            let read = stream.read(&mut buffer).expect("a request comes");
            request.extend_from_slice(&buffer[..read]);
        }
        stream.write_all(answer).expect("the client reads");
        String::from_utf8_lossy(&request).into_owned()
    });
    (address, server)
}

fn is_complete(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\nX-It: yes\r\n\r\n{\"name\":\"jo\"}";

#[test]
fn a_path_is_sent_unchanged() {
    for path in
        ["/user/a%2Fb", "/user/%ff", "/user/%2e%2e", "/user/..", "/user/%00", "/user/%F0%9F%98%80?x=%zz"]
    {
        let (address, server) = answer_once(OK);
        get(&format!("http://{address}{path}"));
        let request = server.join().expect("the server does not panic");
        assert!(request.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{request}");
    }
}

#[test]
fn an_answer_has_status_headers_and_json() {
    let (address, _server) = answer_once(OK);
    let answer = get(&format!("http://{address}/"));
    assert_eq!((answer.status, answer.header("X-IT")), (200, Some("yes")));
    assert_eq!(answer.json()["name"], "jo");
}

#[test]
fn an_error_status_is_an_answer_like_any_other() {
    let (address, _server) = answer_once(b"HTTP/1.1 503 Oh\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n");
    let answer = get(&format!("http://{address}/"));
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
}

#[test]
fn a_body_is_sent_with_its_length_and_headers() {
    let (address, server) = answer_once(OK);
    send("POST", &format!("http://{address}/register"), &[("Content-Type", "application/json")], "{}");
    let request = server.join().expect("the server does not panic").to_lowercase();
    assert!(request.contains("content-type: application/json\r\n"), "{request}");
    assert!(request.contains("content-length: 2\r\n") && request.ends_with("\r\n\r\n{}"), "{request}");
}

#[test]
fn an_empty_post_says_that_it_is_empty() {
    let (address, server) = answer_once(OK);
    send("POST", &format!("http://{address}/register"), &[], "");
    let request = server.join().expect("the server does not panic").to_lowercase();
    assert!(request.contains("content-length: 0\r\n"), "{request}");
}

#[test]
fn known_and_unknown_methods_are_sent() {
    for method in ["DELETE", "HEAD", "OPTIONS", "BREW"] {
        let (address, server) = answer_once(b"HTTP/1.1 204 No\r\n\r\n");
        assert_eq!(send(method, &format!("http://{address}/"), &[], "").status, 204);
        let request = server.join().expect("the server does not panic");
        assert!(request.starts_with(&format!("{method} / HTTP/1.1\r\n")), "{request}");
    }
}

#[test]
fn raw_bytes_get_an_answer_with_a_chunked_body() {
    let chunked =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
    let (address, server) = answer_once(chunked);
    assert_eq!(raw(address, "GET /\u{ff} nonsense\r\n\r\n").text(), "abcde");
    assert!(server.join().expect("the server does not panic").starts_with("GET /"));
}

#[test]
fn an_answer_that_ends_with_the_connection_is_read_to_its_end() {
    let (address, _server) = answer_once(b"HTTP/1.1 400 Bad Request\r\n\r\nall of this");
    let mut connection = Connection::open(address);
    connection.send("nonsense\r\n\r\n");
    assert_eq!(connection.receive().expect("an answer").text(), "all of this");
    assert!(connection.is_closed());
}

#[test]
fn an_answer_to_head_has_no_body() {
    let (address, _server) = answer_once(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
    let answer = raw(address, "HEAD / HTTP/1.1\r\n\r\n");
    assert_eq!((answer.status, answer.body.len()), (200, 0));
}
