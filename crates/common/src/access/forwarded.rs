//! The address of a client, which may be behind proxies: `Forwarded` (RFC 7239) and `X-Forwarded-For`.

use std::net::IpAddr;
use std::str::FromStr;

use actix_web::http::header::{FORWARDED, HeaderMap, HeaderName, X_FORWARDED_FOR};

use crate::error::Invalid;

/// A network, such as `10.0.0.0/8` or `2001:db8::/32`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    network: IpAddr,
    prefix: u32,
}

impl Cidr {
    /// Returns whether `address` is in it.
    #[must_use]
    pub fn holds(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.network.is_ipv4() == address.is_ipv4()
            && (bits(self.network) ^ bits(address)).leading_zeros() >= self.prefix
    }
}

impl FromStr for Cidr {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let read = || {
            let (network, prefix) =
                text.split_once('/').map_or((text, None), |(network, prefix)| (network, Some(prefix)));
            let network: IpAddr = network.parse().ok()?;
            let longest = if network.is_ipv4() { 32 } else { 128 };
            let prefix = match prefix {
                Some(prefix) if prefix.starts_with('+') => return None,
                Some(prefix) => prefix.parse().ok()?,
                None => longest,
            };
            // Bits after the prefix are more likely a wrong prefix, which would trust too many.
            let is_whole = bits(network).checked_shl(prefix).unwrap_or(0) == 0;
            let is_canonical = network.to_canonical() == network;
            (prefix <= longest && is_whole && is_canonical).then_some(Self { network, prefix })
        };
        read().ok_or(Invalid(
            "must be networks such as 10.0.0.0/8 or 2001:db8::/32, with no bits after the prefix, or addresses, \
             separated by commas",
        ))
    }
}

/// The bits of an address, from the left.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address of the client whose request came from `peer` with these `headers`.
///
/// Only a peer within `trusted` is a proxy, whose headers are read. Each proxy appends the address that it got the
/// request from, so they are read from the right, and the first address that is not trusted is the client: what is left
/// of it is the client's own claim. If all are trusted, the client is the last of them. If an entry before it cannot be
/// read, or is obfuscated, the client is the peer.
///
/// A proxy that appends to one of the two headers passes the other one on as the client has sent it. So if both are
/// there, they must lead to the same client, or it is the peer.
#[must_use]
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[Cidr]) -> IpAddr {
    let peer = peer.to_canonical();
    let is_trusted = |address| trusted.iter().any(|network| network.holds(address));
    if !is_trusted(peer) {
        return peer;
    }
    let forwarded = client_in(headers, FORWARDED, forwarded_for, is_trusted);
    let x_forwarded_for = client_in(headers, X_FORWARDED_FOR, node, is_trusted);
    match (forwarded, x_forwarded_for) {
        (None, None) => peer,
        (Some(client), None) | (None, Some(client)) => client.unwrap_or(peer),
        (Some(one), Some(other)) => one.filter(|_| one == other).unwrap_or(peer),
    }
}

/// The client by the header `name`, if it is there and can be read.
fn client_in(
    headers: &HeaderMap,
    name: HeaderName,
    address: impl Fn(&str) -> Option<IpAddr>,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Option<Option<IpAddr>> {
    let mut client = None;
    for line in headers.get_all(name).rev() {
        let Ok(line) = line.to_str() else { return Some(None) };
        for entry in split_from_right(line, ',').map(str::trim_ascii).filter(|entry| !entry.is_empty()) {
            let Some(address) = address(entry) else { return Some(None) };
            client = Some(Some(address));
            if !is_trusted(address) {
                return client;
            }
        }
    }
    client
}

/// The `for` of an entry of `Forwarded`, such as `proto=https;for="[2001:db8::1]:4711"`.
fn forwarded_for(entry: &str) -> Option<IpAddr> {
    // No address holds a backslash, and the search for the ends of quoted texts knows none.
    if entry.contains('\\') {
        return None;
    }
    let pairs = split_from_right(entry, ';').filter_map(|pair| pair.split_once('='));
    let mut nodes = pairs.filter(|(name, _)| name.trim_ascii().eq_ignore_ascii_case("for"));
    let (_, value) = nodes.next()?;
    if nodes.next().is_some() {
        return None;
    }
    let value = value.trim_ascii();
    node(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

/// The address of `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:4711`. A port is not
/// looked at, since it may be obfuscated.
fn node(text: &str) -> Option<IpAddr> {
    let address: IpAddr = if let Some(bracketed) = text.strip_prefix('[') {
        let (address, port) = bracketed.split_once(']')?;
        if !port.is_empty() && !port.starts_with(':') {
            return None;
        }
        address.parse().ok().filter(IpAddr::is_ipv6)?
    } else if let Some((address, port)) = text.split_once(':')
        && !port.contains(':')
    {
        address.parse().ok()?
    } else {
        text.parse().ok()?
    };
    Some(address.to_canonical())
}

/// The parts of `text` between separators that are not within quotes, from the right: a quote that a client has left
/// open spoils nothing of what a proxy has appended.
fn split_from_right(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    text.rsplit(move |character| {
        is_quoted ^= character == '"';
        character == separator && !is_quoted
    })
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    const PROXY: &str = "10.0.0.1";

    /// The client of a request from `peer` with these lines, while 10.0.0.0/8 and fd00::/8 are trusted.
    fn client(peer: &str, lines: &[(HeaderName, &str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.clone(), HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().expect("a network"));
        client_address(peer.parse().expect("an address"), &headers, &trusted).to_string()
    }

    #[test]
    fn headers_from_a_peer_that_is_not_trusted_change_nothing() {
        for peer in ["192.0.2.1", "2001:db8::1", "11.0.0.1"] {
            for value in ["203.0.113.9", "10.0.0.1", "for=203.0.113.9"] {
                assert_eq!(client(peer, &[(X_FORWARDED_FOR, value), (FORWARDED, value)]), peer);
            }
        }
        let headers = [(X_FORWARDED_FOR, "203.0.113.9")];
        assert_eq!(
            client_address("10.0.0.1".parse().expect("it"), &HeaderMap::new(), &[]).to_string(),
            PROXY
        );
        assert_eq!(client("::ffff:192.0.2.1", &headers), "192.0.2.1");
    }

    #[test]
    fn without_a_header_the_peer_is_the_client() {
        for value in ["", " ", ",", " , ,"] {
            assert_eq!(client(PROXY, &[(X_FORWARDED_FOR, value)]), PROXY, "{value}");
            assert_eq!(client(PROXY, &[(FORWARDED, value)]), PROXY, "{value}");
        }
        assert_eq!(client(PROXY, &[]), PROXY);
        assert_eq!(client("::ffff:10.0.0.1", &[(X_FORWARDED_FOR, "192.0.2.1")]), "192.0.2.1");
    }

    #[test]
    fn the_first_address_from_the_right_that_is_not_trusted_is_the_client() {
        // X-Forwarded-For, and the client.
        let table = [
            ("192.0.2.1", "192.0.2.1"),
            ("203.0.113.9, 192.0.2.1", "192.0.2.1"),
            ("203.0.113.9,192.0.2.1,10.0.0.2", "192.0.2.1"),
            ("203.0.113.9, 192.0.2.1, 10.0.0.3, 10.0.0.2", "192.0.2.1"),
            ("nonsense, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
            ("unknown, 192.0.2.1", "192.0.2.1"),
            ("\", 192.0.2.1", "192.0.2.1"),
            ("192.0.2.1:4711", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("192.0.2.1, fd00::1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("192.0.2.1, ::ffff:10.0.0.2", "192.0.2.1"),
            ("192.0.2.1,", "192.0.2.1"),
            // All are trusted: the last of them is the client.
            ("10.0.0.9, 10.0.0.2", "10.0.0.9"),
        ];
        for (value, expected) in table {
            assert_eq!(client(PROXY, &[(X_FORWARDED_FOR, value)]), expected, "{value}");
        }
    }

    #[test]
    fn forwarded_is_read_likewise_with_quotes_ports_and_other_parameters() {
        let table = [
            ("for=192.0.2.1", "192.0.2.1"),
            ("For=192.0.2.1", "192.0.2.1"),
            ("for=\"192.0.2.1:4711\"", "192.0.2.1"),
            ("for=\"192.0.2.1:_port\"", "192.0.2.1"),
            ("for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("for=\"[2001:db8::1]\";proto=https;by=10.0.0.1", "2001:db8::1"),
            ("proto=https; for=192.0.2.1 ;by=_me", "192.0.2.1"),
            ("for=203.0.113.9, for=192.0.2.1, for=10.0.0.2", "192.0.2.1"),
            ("for=192.0.2.1;host=\"a,b;for=203.0.113.9\"", "192.0.2.1"),
            ("for=\", for=192.0.2.1", "192.0.2.1"),
            ("for=\"a\\\", for=192.0.2.1", "192.0.2.1"),
        ];
        for (value, expected) in table {
            assert_eq!(client(PROXY, &[(FORWARDED, value)]), expected, "{value}");
        }
    }

    #[test]
    fn the_peer_is_the_client_if_an_entry_is_unknown_obfuscated_or_unreadable() {
        for node in [
            "unknown",
            "_hidden",
            "_SEVKISEK:4711",
            "unknown:80",
            "localhost",
            "192.0.2",
            "192.0.2.1.1",
            "192.0.2.1/8",
            "[192.0.2.1]",
            "[2001:db8::1",
            "2001:db8::1]",
            "[2001:db8::1]x",
            "é",
            "192.0.2.1 192.0.2.2",
        ] {
            assert_eq!(client(PROXY, &[(X_FORWARDED_FOR, node)]), PROXY, "{node}");
            assert_eq!(client(PROXY, &[(X_FORWARDED_FOR, &format!("203.0.113.9, {node}"))]), PROXY, "{node}");
            let chain = format!("for=203.0.113.9, for=\"{node}\", for=10.0.0.2");
            assert_eq!(client(PROXY, &[(FORWARDED, &chain)]), PROXY, "{node}");
        }
        for entry in
            ["proto=https", "for", "192.0.2.1", "for=192.0.2.1;for=192.0.2.1", "for=192\\.0.2.1", "for=\""]
        {
            assert_eq!(client(PROXY, &[(FORWARDED, entry)]), PROXY, "{entry}");
        }
    }

    #[test]
    fn several_lines_are_one_list() {
        let lines = ["203.0.113.9", "192.0.2.1, 10.0.0.3", "10.0.0.2"].map(|value| (X_FORWARDED_FOR, value));
        assert_eq!(client(PROXY, &lines), "192.0.2.1");
        let lines = ["for=203.0.113.9", "for=192.0.2.1", "for=10.0.0.2"].map(|value| (FORWARDED, value));
        assert_eq!(client(PROXY, &lines), "192.0.2.1");
    }

    #[test]
    fn a_header_that_the_proxy_only_passed_on_gives_nobody_another_address() {
        let appended = (X_FORWARDED_FOR, "192.0.2.1");
        assert_eq!(client(PROXY, &[(FORWARDED, "for=203.0.113.9"), appended.clone()]), PROXY);
        assert_eq!(client(PROXY, &[(FORWARDED, "for=_hidden"), appended.clone()]), PROXY);
        assert_eq!(client(PROXY, &[(FORWARDED, "for=192.0.2.1"), appended]), "192.0.2.1");
    }

    #[test]
    fn a_network_holds_the_addresses_of_its_prefix() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("192.0.2.1", "192.0.2.1", "192.0.2.0"),
            ("192.0.2.128/25", "192.0.2.200", "192.0.2.127"),
            ("0.0.0.0/0", "255.1.2.3", "::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::1"),
            ("::1", "::1", "::2"),
            ("10.0.0.0/8", "::ffff:10.0.0.1", "::a00:1"),
        ] {
            let cidr: Cidr = network.parse().expect(network);
            assert!(cidr.holds(inside.parse().expect("an address")), "{network} {inside}");
            assert!(!cidr.holds(outside.parse().expect("an address")), "{network} {outside}");
        }
        for wrong in [
            "",
            "10",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "2001:db8::/129",
            "2001:db8::1/64",
            "::ffff:10.0.0.0/104",
            "localhost",
            "10.0.0.0/8/8",
            "*",
            "10.0.0.0/4294967328",
        ] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }
}
