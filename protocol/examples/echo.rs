//! An echo server on the protocol's own framing, with permessage-deflate where it is asked for, for the Autobahn fuzzing client (`tests/autobahn`).
//! Blocking and a thread a connection: it measures nothing.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use base64::Engine;
use carillon_protocol::websocket::{
    Assembler, Incoming, Opcode, close_frame, frame, message_frame, negotiate,
};
use sha1::{Digest, Sha1};

const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9001".to_owned());
    let listener = TcpListener::bind(address)?;
    for socket in listener.incoming() {
        let socket = socket?;
        std::thread::spawn(move || {
            // A peer that breaks off is what the fuzzer does all day.
            let _ = serve(socket);
        });
    }
    Ok(())
}

fn serve(mut socket: TcpStream) -> std::io::Result<()> {
    let (mut early, deflate) = handshake(&mut socket)?;
    let mut assembler = Assembler::new(MESSAGE_BYTES_MAX).with_deflate(deflate);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = if early.is_empty() { socket.read(&mut buffer)? } else { 0 };
        let bytes = if early.is_empty() { &mut buffer[..read] } else { &mut early[..] };
        if bytes.is_empty() {
            return Ok(());
        }
        let mut answer = Vec::new();
        let mut closing = false;
        let fed = assembler.feed(bytes, &mut |incoming| {
            match incoming {
                Incoming::Text(text) => {
                    let frame = message_frame(Opcode::Text, text.as_bytes(), deflate);
                    answer.extend_from_slice(&frame);
                }
                Incoming::Binary(bytes) => {
                    answer.extend_from_slice(&message_frame(Opcode::Binary, bytes, deflate));
                }
                Incoming::Ping(bytes) => answer.extend_from_slice(&frame(Opcode::Pong, bytes)),
                Incoming::Pong => {}
                Incoming::Close(code) => {
                    answer.extend_from_slice(&close_frame(code.unwrap_or(1000), ""));
                    closing = true;
                }
            }
            !closing
        });
        if let Err(violation) = fed {
            answer.extend_from_slice(&close_frame(violation.code.number(), violation.problem));
            closing = true;
        }
        early = Vec::new();
        socket.write_all(&answer)?;
        if closing {
            return socket.shutdown(std::net::Shutdown::Write);
        }
    }
}

/// Answers the opening handshake; bytes that came behind it, and whether messages may be compressed.
fn handshake(socket: &mut TcpStream) -> std::io::Result<(Vec<u8>, bool)> {
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    let end = loop {
        if let Some(at) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        let read = socket.read(&mut chunk)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        request.extend_from_slice(&chunk[..read]);
    };
    let head = String::from_utf8_lossy(&request[..end]).into_owned();
    let values = |wanted: &'static str| {
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .filter(move |(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value.trim())
    };
    let key = values("sec-websocket-key").next().unwrap_or_default();
    let extension = negotiate(values("sec-websocket-extensions"));
    let extensions = extension
        .map(|extension| format!("Sec-WebSocket-Extensions: {extension}\r\n"))
        .unwrap_or_default();
    let digest = Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    let accept = base64::engine::general_purpose::STANDARD.encode(digest);
    write!(
        socket,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n{extensions}\r\n"
    )?;
    Ok((request.split_off(end), extension.is_some()))
}
