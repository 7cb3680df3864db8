//! The proxy's faults, each shown on an echo server.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use devstack::{Direction, Proxy};

/// A server that sends back what it receives, until the test ends.
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

/// A proxy in front of a server that the test plays.
fn listener_behind_a_proxy() -> (TcpListener, Proxy) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let proxy = Proxy::start(listener.local_addr().expect("it is bound"));
    (listener, proxy)
}

/// Both ends of a connection through the proxy.
fn pair(upstream: &TcpListener, proxy: &Proxy) -> (TcpStream, TcpStream) {
    let client = connect(proxy);
    let (server, _) = upstream.accept().expect("the proxy connects");
    server.set_read_timeout(Some(Duration::from_secs(10))).expect("a valid time-out");
    (client, server)
}

fn receive(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("it comes");
    bytes
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
        writer.write_all(&copy).expect("the proxy reads all");
        writer.shutdown(Shutdown::Write).expect("it is open");
    });
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it ends in good order");
    sent.join().expect("the thread does not panic");
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
    // Nothing reads on the other side: fill all buffers on the way.
    while stream.write_all(&[0; 65_536]).is_ok() {}
    proxy.cut();
    assert_eq!(proxy.connections(), 0);
}

#[test]
fn a_stall_holds_everything_until_a_restore() {
    let proxy = Proxy::start(echo_server());
    let mut stream = connect(&proxy);
    proxy.stall();
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a valid time-out");
    assert_eq!(exchange(&mut stream, b"hello"), Err(ErrorKind::WouldBlock));
    proxy.restore();
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a valid time-out");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).expect("it continues");
    assert_eq!(&answer, b"hello");
}

#[test]
fn a_reset_ends_what_a_stall_holds() {
    let proxy = Proxy::start(echo_server());
    let mut stream = connect(&proxy);
    assert_eq!(exchange(&mut stream, b"hello"), Ok(b"hello".to_vec()));
    proxy.stall();
    stream.write_all(b"held").expect("the proxy reads it");
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
fn a_client_is_reset_when_nothing_listens_upstream() {
    let closed =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let proxy = Proxy::start(closed);
    assert!(exchange(&mut connect(&proxy), b"hello").is_err());
}

#[test]
fn the_nth_message_with_the_needle_is_held_and_all_else_passes() {
    let proxy = Proxy::start(echo_server());
    let mut one = connect(&proxy);
    let mut other = connect(&proxy);
    let held = proxy.hold(Direction::ToUpstream, "lo", 2);
    assert_eq!(exchange(&mut one, b"hello"), Ok(b"hello".to_vec()));
    assert_eq!(exchange(&mut one, b"bye"), Ok(b"bye".to_vec()));
    one.write_all(b"hello").expect("it is open");
    held.wait();
    assert_eq!(exchange(&mut other, b"hello"), Ok(b"hello".to_vec()));
    // What follows a held message waits behind it.
    one.write_all(b" again").expect("it is open");
    one.set_read_timeout(Some(Duration::from_millis(100))).expect("a valid time-out");
    assert_eq!(one.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    held.release();
    one.set_read_timeout(Some(Duration::from_secs(10))).expect("a valid time-out");
    let mut answer = [0; 11];
    one.read_exact(&mut answer).expect("it continues");
    assert_eq!(&answer, b"hello again");
}

#[test]
fn a_reply_is_held_on_the_connection_of_its_message_alone() {
    let (upstream, proxy) = listener_behind_a_proxy();
    let (mut one, mut server) = pair(&upstream, &proxy);
    let (mut other, mut server_of_other) = pair(&upstream, &proxy);
    let held = proxy.hold_reply("hello", 1);
    server.write_all(b"before").expect("it is open");
    assert_eq!(receive(&mut one, 6), b"before");
    one.write_all(b"hello").expect("it is open");
    assert_eq!(receive(&mut server, 5), b"hello", "the message itself passes");
    server_of_other.write_all(b"to another").expect("it is open");
    assert_eq!(receive(&mut other, 10), b"to another");
    server.write_all(b"reply").expect("it is open");
    held.wait();
    one.write_all(b"more").expect("it is open");
    assert_eq!(receive(&mut server, 4), b"more", "the other direction passes");
    held.release();
    assert_eq!(receive(&mut one, 5), b"reply");
}

#[test]
fn what_a_client_sent_before_it_died_arrives_when_it_is_released() {
    for by_reset in [false, true] {
        let (upstream, proxy) = listener_behind_a_proxy();
        let (mut client, mut server) = pair(&upstream, &proxy);
        let held = proxy.hold(Direction::ToUpstream, "last", 1);
        if by_reset {
            // Closing a socket with unread data sends RST.
            server.write_all(b"unread").expect("it is open");
            client.peek(&mut [0]).expect("it is there");
        }
        client.write_all(b"last words").expect("it is open");
        held.wait();
        drop(client);
        // The client's kernel answers at least the first of these with RST, so the proxy knows that the client is gone.
        server.set_read_timeout(Some(Duration::from_millis(50))).expect("a valid time-out");
        for _ in 0..3 {
            server.write_all(b"are you there?").expect("it is not reset");
            assert_eq!(server.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
        }
        server.set_read_timeout(Some(Duration::from_secs(10))).expect("a valid time-out");
        held.release();
        assert_eq!(receive(&mut server, 10), b"last words");
    }
}

#[test]
fn what_is_discarded_never_arrives_and_its_connection_is_reset() {
    let (upstream, proxy) = listener_behind_a_proxy();
    let (mut client, mut server) = pair(&upstream, &proxy);
    let held = proxy.hold(Direction::ToUpstream, "hello", 1);
    client.write_all(b"hello").expect("it is open");
    held.discard();
    for side in [&mut client, &mut server] {
        assert_eq!(side.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    }
    let (mut client, mut server) = pair(&upstream, &proxy);
    client.write_all(b"hello").expect("it is open");
    assert_eq!(receive(&mut server, 5), b"hello", "others pass");
}

#[test]
fn a_message_to_hold_is_awaited_for_a_time() {
    let proxy = Proxy::start(echo_server());
    let mut stream = connect(&proxy);
    let held = proxy.hold(Direction::ToUpstream, "hello", 1);
    assert!(!held.has_come_within(Duration::from_millis(20)));
    stream.write_all(b"hello").expect("it is open");
    assert!(held.has_come_within(Duration::from_secs(10)));
    held.release();
    assert_eq!(receive(&mut stream, 5), b"hello");
}

#[test]
fn a_hold_that_is_dropped_lets_its_message_go_on() {
    let proxy = Proxy::start(echo_server());
    let mut stream = connect(&proxy);
    drop(proxy.hold(Direction::ToUpstream, "hello", 1));
    assert_eq!(exchange(&mut stream, b"hello"), Ok(b"hello".to_vec()));
    let held = proxy.hold(Direction::FromUpstream, "hello", 1);
    stream.write_all(b"hello").expect("it is open");
    held.wait();
    drop(held);
    assert_eq!(receive(&mut stream, 5), b"hello");
}

#[test]
fn a_held_message_goes_on_by_itself_after_its_limit() {
    let proxy = Proxy::start(echo_server());
    let mut one = connect(&proxy);
    let mut other = connect(&proxy);
    let limit = Duration::from_millis(250);
    // The next message, whatever it is.
    let held = proxy.hold(Direction::ToUpstream, "", 1).at_most(limit);
    let start = Instant::now();
    one.write_all(b"hello").expect("it is open");
    held.wait();
    assert_eq!(exchange(&mut other, b"hello"), Ok(b"hello".to_vec()));
    assert_eq!(receive(&mut one, 5), b"hello");
    assert!(start.elapsed() >= limit);
    assert_eq!(exchange(&mut one, b"again"), Ok(b"again".to_vec()));
}

#[test]
fn a_retargeted_proxy_leaves_open_connections_where_they_are() {
    let (old, proxy) = listener_behind_a_proxy();
    let new = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let (mut before, mut at_old) = pair(&old, &proxy);
    proxy.retarget(new.local_addr().expect("it is bound"));
    let (mut after, mut at_new) = pair(&new, &proxy);
    before.write_all(b"old").expect("it is open");
    after.write_all(b"new").expect("it is open");
    assert_eq!((receive(&mut at_old, 3), receive(&mut at_new, 3)), (b"old".to_vec(), b"new".to_vec()));
}
