//! What the tests of `devstack up` start in place of user-svc and data-svc: it listens on PORT and answers 200 to all.
//! Makes a token as user-svc does.

use std::io::{Read, Write};
use std::net::TcpListener;

fn main() -> std::io::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("token") {
        println!("a-token");
        eprintln!("a line of the list");
        return Ok(());
    }
    let port = std::env::var("PORT").unwrap_or_default();
    let listener = TcpListener::bind(format!("127.0.0.1:{port}"))?;
    eprintln!("listening on http://127.0.0.1:{port}, metrics on http://127.0.0.1:0");
    for mut stream in listener.incoming().flatten() {
        // A client that disconnects early must not end this program.
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    Ok(())
}
