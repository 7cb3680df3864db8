//! The proxy's faults, each shown on an echo server.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use devstack::Proxy;

/// A server that sends back what it gets, as long as the test runs.
fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut copy = stream.try_clone().expect("a second handle");
                std::io::copy(&mut stream, &mut copy)
            });
        }
    });
    address
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a valid time-out");
    stream
}

fn exchange(stream: &mut TcpStream, text: &[u8]) -> Result<Vec<u8>, ErrorKind> {
    let mut answer = vec![0; text.len()];
    let done = stream.write_all(text).and_then(|()| stream.read_exact(&mut answer));
    done.map(|()| answer).map_err(|error: Error| error.kind())
}

#[test]
fn data_and_ends_pass_unchanged_in_both_directions() {
    let proxy = Proxy::start(echo_server());
    let mut stream = connect(&proxy);
    let long = vec![7; 1_000_000];
    let mut writer = stream.try_clone().expect("a second handle");
    let copy = long.clone();
    let sent = std::thread::spawn(move || {
        writer.write_all(&copy).expect("all is taken");
        writer.shutdown(std::net::Shutdown::Write).expect("it is open");
    });
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it ends in good order");
    sent.join().expect("the thread lives");
    assert!(answer == long);
}

#[test]
fn a_cut_resets_live_connections_and_new_ones_until_restored() {
    let proxy = Proxy::start(echo_server());
    let mut old = connect(&proxy);
    assert_eq!(exchange(&mut old, b"hello"), Ok(b"hello".to_vec()));

    proxy.cut();
    assert_eq!(proxy.connections(), 0);
    assert_eq!(old.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    assert!(exchange(&mut connect(&proxy), b"hello").is_err());

    proxy.restore();
    assert_eq!(exchange(&mut connect(&proxy), b"hello"), Ok(b"hello".to_vec()));
}

#[test]
fn a_reset_ends_live_connections_and_lets_new_ones_pass() {
    let proxy = Proxy::start(echo_server());
    let mut old = connect(&proxy);
    assert_eq!(exchange(&mut old, b"hello"), Ok(b"hello".to_vec()));
    proxy.reset();
    assert_eq!(old.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    assert_eq!(exchange(&mut connect(&proxy), b"hello"), Ok(b"hello".to_vec()));
}

#[test]
fn a_cut_frees_a_connection_whose_reader_is_stuck() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let proxy = Proxy::start(silent.local_addr().expect("it is bound"));
    let mut stream = connect(&proxy);
    stream.set_write_timeout(Some(Duration::from_millis(100))).expect("a valid time-out");
    // Nobody reads on the other side: fill all buffers on the way.
    while stream.write_all(&[0; 65_536]).is_ok() {}
    proxy.cut();
    assert_eq!(proxy.connections(), 0);
}

#[test]
fn a_stall_holds_everything_and_a_restore_lets_it_go_on() {
    let proxy = Proxy::start(echo_server());
    let mut stream = connect(&proxy);
    proxy.stall();
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a valid time-out");
    assert_eq!(exchange(&mut stream, b"hello"), Err(ErrorKind::WouldBlock));
    proxy.restore();
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a valid time-out");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).expect("it goes on");
    assert_eq!(&answer, b"hello");
}

#[test]
fn a_reset_ends_what_a_stall_holds() {
    let proxy = Proxy::start(echo_server());
    let mut stream = connect(&proxy);
    assert_eq!(exchange(&mut stream, b"hello"), Ok(b"hello".to_vec()));
    proxy.stall();
    stream.write_all(b"held").expect("the proxy takes it");
    proxy.reset();
    assert_eq!(proxy.connections(), 0);
    assert_eq!(stream.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
}

#[test]
fn a_delay_holds_each_direction_at_least_that_long() {
    let proxy = Proxy::start(echo_server());
    let mut stream = connect(&proxy);
    let delay = Duration::from_millis(60);
    proxy.delay(delay);
    let start = Instant::now();
    assert_eq!(exchange(&mut stream, b"hello"), Ok(b"hello".to_vec()));
    assert!(start.elapsed() >= delay * 2);
}

#[test]
fn garbling_changes_what_comes_from_upstream() {
    let proxy = Proxy::start(echo_server());
    let mut stream = connect(&proxy);
    proxy.garble();
    let garbled = exchange(&mut stream, b"hello").expect("something comes");
    assert!(garbled.iter().zip(b"hello").all(|(got, sent)| got != sent));
}

#[test]
fn a_client_is_reset_when_nobody_listens_upstream() {
    let closed =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let proxy = Proxy::start(closed);
    assert!(exchange(&mut connect(&proxy), b"hello").is_err());
}
