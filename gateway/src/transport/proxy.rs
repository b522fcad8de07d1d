//! Who is really at the other end where balancers stand in between: the PROXY protocol (versions 1
//! and 2) before the first byte, and `X-Forwarded-For` in requests. Both are believed from configured
//! proxies alone; to everybody else they are bytes like any others. Source: `operations.md` 3.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use http::HeaderMap;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::config::Network;

/// Opens a header of version 2: bytes that begin neither a request nor a TLS record.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Opens a header of version 1.
const WORD: &[u8] = b"PROXY ";
/// The longest line of version 1, its end included.
const LINE_BYTES_MAX: usize = 107;
/// Version 2 with what balancers append; more is refused, so that reading is bounded.
const HEADER_BYTES_MAX: usize = 2_048;
/// A header comes in one segment. Where it does not, the socket is looked at again after this: it
/// stays readable, and so cannot tell when there is more.
const PAUSE: Duration = Duration::from_millis(5);

const FORWARDED_FOR: &str = "x-forwarded-for";

/// What the first bytes of a socket are.
#[derive(Debug, PartialEq, Eq)]
enum Opening {
    /// Not a PROXY header.
    Other,
    /// The beginning of one.
    Incomplete,
    /// A header of so many bytes. The address is `None` where the proxy speaks for itself (health checks) or
    /// does not know.
    Header(usize, Option<IpAddr>),
}

/// Whether an address is one of the configured proxies.
#[must_use]
pub fn is_trusted(address: IpAddr, proxies: &[Network]) -> bool {
    proxies.iter().any(|network| network.contains(address))
}

/// Reads the PROXY header that a trusted proxy may send first; the client's address where it says one.
/// Without a header nothing is taken from the socket. The caller bounds the time.
///
/// # Errors
/// A broken header, or the end of the socket: close it.
pub async fn read_header(socket: &mut TcpStream) -> io::Result<Option<IpAddr>> {
    let mut buffer = [0; HEADER_BYTES_MAX];
    loop {
        let there = socket.peek(&mut buffer).await?;
        if there == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match Opening::read(&buffer[..there])? {
            Opening::Other => return Ok(None),
            Opening::Incomplete => tokio::time::sleep(PAUSE).await,
            Opening::Header(bytes, address) => {
                socket.read_exact(&mut buffer[..bytes]).await?;
                return Ok(address);
            }
        }
    }
}

impl Opening {
    fn read(bytes: &[u8]) -> io::Result<Self> {
        if bytes.starts_with(SIGNATURE) {
            return binary(bytes);
        }
        if bytes.starts_with(WORD) {
            return line(bytes);
        }
        let begun = SIGNATURE.starts_with(bytes) || WORD.starts_with(bytes);
        Ok(if begun { Self::Incomplete } else { Self::Other })
    }
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Version 2: signature, version and command, family, length, addresses, extensions.
fn binary(bytes: &[u8]) -> io::Result<Opening> {
    let Some(&[command, family, high, low]) = bytes.get(12..16).and_then(|four| four.first_chunk())
    else {
        return Ok(Opening::Incomplete);
    };
    let end = 16 + usize::from(u16::from_be_bytes([high, low]));
    if command >> 4 != 2 {
        return Err(broken("a PROXY header of an unknown version"));
    }
    if end > HEADER_BYTES_MAX {
        return Err(broken("a PROXY header that is too long"));
    }
    let Some(addresses) = bytes.get(16..end) else { return Ok(Opening::Incomplete) };
    let source = match (command & 0xF, family) {
        (0, _) => None,
        (1, 0x11) if addresses.len() >= 12 => {
            addresses.first_chunk().map(|four: &[u8; 4]| IpAddr::V4(Ipv4Addr::from(*four)))
        }
        (1, 0x21) if addresses.len() >= 36 => {
            addresses.first_chunk().map(|sixteen: &[u8; 16]| IpAddr::V6(Ipv6Addr::from(*sixteen)))
        }
        // Unspecified, and local sockets: there is no address to know.
        (1, 0x00 | 0x31) => None,
        (1, _) => return Err(broken("a PROXY header without the addresses it announces")),
        _ => return Err(broken("a PROXY header with an unknown command")),
    };
    Ok(Opening::Header(end, source.map(|address| address.to_canonical())))
}

/// Version 1: `PROXY TCP4 source destination source-port destination-port` and a line's end.
fn line(bytes: &[u8]) -> io::Result<Opening> {
    let window = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = window.windows(2).position(|two| two == b"\r\n") else {
        if window.len() == LINE_BYTES_MAX {
            return Err(broken("a PROXY line without an end"));
        }
        return Ok(Opening::Incomplete);
    };
    let text = std::str::from_utf8(&bytes[WORD.len()..end])
        .map_err(|_| broken("a PROXY line of no text"))?;
    let words: Vec<&str> = text.split(' ').collect();
    let source: IpAddr = match words.as_slice() {
        ["UNKNOWN", ..] => return Ok(Opening::Header(end + 2, None)),
        [family @ ("TCP4" | "TCP6"), source, destination, from_port, to_port] => {
            let address = |text: &str| {
                let address: Option<IpAddr> = text.parse().ok();
                address.filter(|address| address.is_ipv4() == (*family == "TCP4"))
            };
            let ports = [from_port, to_port].iter().all(|port| port.parse::<u16>().is_ok());
            address(source).filter(|_| ports && address(destination).is_some())
        }
        _ => None,
    }
    .ok_or_else(|| broken("a PROXY line that names no addresses"))?;
    Ok(Opening::Header(end + 2, Some(source.to_canonical())))
}

/// The client behind the proxies: the right-most address of `X-Forwarded-For` that is no proxy of ours.
/// Left of it anybody may have written anything.
#[must_use]
pub fn client(peer: IpAddr, headers: &HeaderMap, proxies: &[Network]) -> IpAddr {
    let mut client = peer.to_canonical();
    let hops = headers
        .get_all(FORWARDED_FOR)
        .iter()
        .rev()
        .flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
    for hop in hops {
        if !is_trusted(client, proxies) {
            break;
        }
        match address(hop.trim()) {
            Some(address) => client = address,
            None => break,
        }
    }
    client
}

/// An address as proxies write it: bare, in brackets, with a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        None => match text.split_once(':') {
            Some((host, port)) if !port.contains(':') => host,
            _ => text,
        },
    };
    bare.parse().ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend_from_slice(&[command, family]);
        header.extend_from_slice(&(body.len() as u16).to_be_bytes());
        header.extend_from_slice(body);
        header
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    /// Read whole it is this; cut anywhere it is incomplete; bytes behind it change nothing.
    #[track_caller]
    fn reads(header: &[u8], address: Option<&str>) {
        let expected = Opening::Header(header.len(), address.map(ip));
        assert_eq!(Opening::read(header).expect("good"), expected);
        assert_eq!(
            Opening::read(&[header, b"GET / HTTP/1.1\r\n"].concat()).expect("good"),
            expected
        );
        for cut in 1..header.len() {
            assert_eq!(Opening::read(&header[..cut]).expect("good"), Opening::Incomplete, "{cut}");
        }
    }

    #[test]
    fn headers_of_both_versions_say_the_source() {
        let four = [203, 0, 113, 7, 10, 0, 0, 1, 0xC0, 1, 0, 80];
        reads(&v2(0x21, 0x11, &four), Some("203.0.113.7"));
        reads(&v2(0x21, 0x11, &[&four[..], b"\x03\0\x04abcd"].concat()), Some("203.0.113.7"));
        let six = [
            &ip("2001:db8::7").to_string().parse::<Ipv6Addr>().expect("six").octets()[..],
            &[0; 20],
        ];
        reads(&v2(0x21, 0x21, &six.concat()), Some("2001:db8::7"));
        reads(&v2(0x20, 0x00, b""), None);
        reads(&v2(0x21, 0x00, b""), None);
        reads(&v2(0x21, 0x31, &[0; 216]), None);
        reads(b"PROXY TCP4 203.0.113.7 10.0.0.1 49153 80\r\n", Some("203.0.113.7"));
        reads(b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n", Some("2001:db8::7"));
        reads(b"PROXY TCP6 ::ffff:203.0.113.7 ::1 1 2\r\n", Some("203.0.113.7"));
        reads(b"PROXY UNKNOWN\r\n", None);
        reads(b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None);
    }

    #[test]
    fn requests_and_records_are_no_headers() {
        for bytes in [
            &b"GET / HTTP/1.1"[..],
            b"POST /",
            b"PROPFIND",
            b"\x16\x03\x01",
            b"\r\n\r\nGET",
            b"PROXYx",
        ] {
            assert_eq!(Opening::read(bytes).expect("no header"), Opening::Other, "{bytes:?}");
        }
    }

    #[test]
    fn broken_headers_are_errors() {
        let four = [203, 0, 113, 7, 10, 0, 0, 1, 0xC0, 1, 0];
        for header in [
            v2(0x11, 0x11, &[0; 12]),
            v2(0x22, 0x11, &[0; 12]),
            v2(0x21, 0x11, &four),
            v2(0x21, 0x21, &[0; 35]),
            v2(0x21, 0x12, &[0; 12]),
            v2(0x21, 0x11, &[0; HEADER_BYTES_MAX]),
            b"PROXY TCP4 203.0.113.7 10.0.0.1 49153\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 10.0.0.1 65536 80\r\n".to_vec(),
            b"PROXY TCP4  203.0.113.7 10.0.0.1 1 80\r\n".to_vec(),
            b"PROXY UDP4 203.0.113.7 10.0.0.1 1 80\r\n".to_vec(),
            b"PROXY \xFF\r\n".to_vec(),
            [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; LINE_BYTES_MAX]].concat(),
        ] {
            assert!(Opening::read(&header).is_err(), "{header:?}");
        }
    }

    #[test]
    fn the_right_most_untrusted_address_is_the_client() {
        let proxies: Vec<Network> = ["10.0.0.0/8", "fd00::/8"]
            .iter()
            .map(|network| network.parse().expect("a network"))
            .collect();
        let client_of = |peer: &str, lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED_FOR, HeaderValue::from_str(line).expect("a value"));
            }
            client(ip(peer), &headers, &proxies).to_string()
        };
        assert_eq!(client_of("10.0.0.1", &["203.0.113.7"]), "203.0.113.7");
        assert_eq!(client_of("10.0.0.1", &["6.6.6.6, 203.0.113.7"]), "203.0.113.7");
        assert_eq!(client_of("10.0.0.1", &["6.6.6.6,203.0.113.7, 10.9.9.9"]), "203.0.113.7");
        assert_eq!(client_of("10.0.0.1", &["6.6.6.6", "203.0.113.7", "fd00::2"]), "203.0.113.7");
        assert_eq!(client_of("10.0.0.1", &["203.0.113.7:4711"]), "203.0.113.7");
        assert_eq!(client_of("::ffff:10.0.0.1", &["[2001:db8::7]:4711"]), "2001:db8::7");
        assert_eq!(client_of("10.0.0.1", &["2001:db8::7"]), "2001:db8::7");
        assert_eq!(client_of("10.0.0.1", &["10.0.0.2"]), "10.0.0.2");
        assert_eq!(client_of("10.0.0.1", &["203.0.113.7, unknown"]), "10.0.0.1");
        assert_eq!(client_of("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client_of("192.0.2.1", &["203.0.113.7"]), "192.0.2.1");
    }
}
