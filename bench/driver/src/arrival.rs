//! When the kernel received an answer. The difference to when the generator reads it is the generator's own: it waits
//! for a processor, or handles other answers first.

use std::io::{self, IoSliceMut};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::sockopt::ReceiveTimestampns;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

/// Whether the kernel stamps what it receives, which costs a little time for each answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It does not.
    Ignored,
    /// It does.
    Stamped,
}

/// Lets the kernel stamp what arrives at this socket from now on (socket(7), `SO_TIMESTAMPNS`).
pub fn stamp(socket: &TcpStream) {
    setsockopt(socket, ReceiveTimestampns, &true).expect("a socket takes its options");
}

/// Reads, and returns how many bytes and how long ago the last of them arrived.
///
/// # Errors
/// As [`std::io::Read::read`].
pub fn read(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, Option<Duration>)> {
    let mut parts = [IoSliceMut::new(buffer)];
    let mut space = nix::cmsg_space!(TimeSpec);
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
    let arrived = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmTimestampns(arrived) => Some(Duration::from(arrived)),
        _ => None,
    });
    // The kernel stamps by this clock, which is never set while a benchmark runs.
    let now = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?);
    Ok((message.bytes, arrived.map(|arrived| now.saturating_sub(arrived))))
}
