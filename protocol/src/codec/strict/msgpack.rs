//! The MessagePack reader: checks a document and writes its payload as JSON text, in one pass.
//! Recursion is bounded by [`DEPTH_MAX`]; nothing is allocated by a length that a peer only claims.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rmp::Marker;

use super::{DEPTH_MAX, Document, Field, Fields, Keys, Problem};
use crate::Payload;
use crate::codec::push_json_string;

/// Reads one MessagePack document that must be a map.
pub(crate) fn read_msgpack(bytes: &[u8]) -> Document<'_> {
    let mut fields = Fields::default();
    let mut reader = Reader { bytes, at: 0, keys: Keys::default(), binary: false, objection: None };
    let read = reader.document(&mut fields);
    Document::new(fields, read, reader.objection)
}

/// The members of a map that hold binary values, with the bytes of each; none where it is no map. The document was
/// read before.
pub(crate) fn binary_members(map: &[u8]) -> Vec<(&str, &[u8])> {
    let mut reader =
        Reader { bytes: map, at: 0, keys: Keys::default(), binary: false, objection: None };
    reader.binary_members().unwrap_or_default()
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    keys: Keys<'a>,
    /// A binary value was met.
    binary: bool,
    /// The first thing that is well-formed but refused.
    objection: Option<Problem>,
}

/// One value's head; of texts and binaries the content as well.
enum Token<'a> {
    Nil,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(&'a str),
    Binary(&'a [u8]),
    Array(usize),
    Map(usize),
    Refused,
}

impl<'a> Reader<'a> {
    fn document(&mut self, fields: &mut Fields<'a>) -> Result<(), Problem> {
        let Token::Map(pairs) = self.token()? else {
            return Err(Problem { reason: "a message is a MessagePack map", byte: 0 });
        };
        let mut unread = Vec::new();
        self.map(pairs, |reader, key| {
            unread.clear();
            if key == "payload" {
                fields.payload = Some(reader.payload()?);
            } else if let Some(field) = fields.named(key) {
                let from = reader.at;
                *field = match reader.token()? {
                    Token::Text(text) => Field::Text(Cow::Borrowed(text)),
                    Token::Nil => Field::Null,
                    _ => {
                        reader.at = from;
                        reader.value(2, &mut unread)?;
                        Field::Other
                    }
                };
            } else {
                reader.value(2, &mut unread)?;
            }
            Ok(())
        })?;
        if self.at < self.bytes.len() {
            return Err(Problem { reason: "more after the end of the document", byte: self.at });
        }
        Ok(())
    }

    fn payload(&mut self) -> Result<Payload, Problem> {
        let from = self.at;
        self.binary = false;
        let mut json = Vec::with_capacity(self.bytes.len() - from);
        self.value(2, &mut json)?;
        Ok(if self.binary {
            Payload::with_msgpack(json, Bytes::copy_from_slice(&self.bytes[from..self.at]))
        } else {
            Payload::from_json(json)
        })
    }

    fn binary_members(&mut self) -> Result<Vec<(&'a str, &'a [u8])>, Problem> {
        let mut members = Vec::new();
        let Token::Map(pairs) = self.token()? else { return Ok(members) };
        for _ in 0..pairs {
            let Token::Text(name) = self.token()? else { return Ok(members) };
            let from = self.at;
            self.binary = false;
            self.pass_over()?;
            if self.binary {
                members.push((name, &self.bytes[from..self.at]));
            }
        }
        Ok(members)
    }

    /// Reads one value and appends it as JSON.
    fn value(&mut self, depth: usize, json: &mut Vec<u8>) -> Result<(), Problem> {
        use std::io::Write as _;
        let from = self.at;
        let token = self.token()?;
        if depth > DEPTH_MAX && matches!(token, Token::Array(_) | Token::Map(_)) {
            self.objection
                .get_or_insert(Problem { reason: "nested deeper than 128 levels", byte: from });
            self.at = from;
            return self.pass_over();
        }
        // Writing to a Vec cannot fail.
        match token {
            Token::Nil | Token::Refused => json.extend_from_slice(b"null"),
            Token::Bool(value) => json.extend_from_slice(if value { b"true" } else { b"false" }),
            Token::Unsigned(value) => drop(write!(json, "{value}")),
            Token::Signed(value) => drop(write!(json, "{value}")),
            Token::Float(value) => drop(serde_json::to_writer(&mut *json, &value)),
            Token::Text(text) => push_json_string(json, text),
            Token::Binary(bytes) => {
                self.binary = true;
                json.push(b'"');
                json.extend_from_slice(STANDARD.encode(bytes).as_bytes());
                json.push(b'"');
            }
            Token::Array(items) => {
                json.push(b'[');
                for index in 0..items {
                    if index > 0 {
                        json.push(b',');
                    }
                    self.value(depth + 1, json)?;
                }
                json.push(b']');
            }
            Token::Map(pairs) => {
                json.push(b'{');
                let mut first = true;
                self.map(pairs, |reader, key| {
                    if !std::mem::take(&mut first) {
                        json.push(b',');
                    }
                    push_json_string(json, key);
                    json.push(b':');
                    reader.value(depth + 1, json)
                })?;
                json.push(b'}');
            }
        }
        Ok(())
    }

    fn map(
        &mut self,
        pairs: usize,
        mut member: impl FnMut(&mut Self, &str) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let first_key = self.keys.len();
        for _ in 0..pairs {
            let from = self.at;
            let Token::Text(key) = self.token()? else {
                self.objection
                    .get_or_insert(Problem { reason: "a key that is no string", byte: from });
                self.at = from;
                self.pass_over()?;
                self.pass_over()?;
                continue;
            };
            member(self, key)?;
            self.keys.push(Cow::Borrowed(key), from);
        }
        if let Err(twice) = self.keys.close(first_key) {
            self.objection.get_or_insert(twice);
        }
        Ok(())
    }

    /// Passes over one value without recursion; notes whether it holds binary.
    fn pass_over(&mut self) -> Result<(), Problem> {
        let mut values = 1_u64;
        while values > 0 {
            values -= 1;
            // Lengths are 32 bits and each costs five bytes: this cannot overflow.
            values += match self.token()? {
                Token::Array(items) => items as u64,
                Token::Map(pairs) => pairs as u64 * 2,
                Token::Binary(_) => {
                    self.binary = true;
                    0
                }
                _ => 0,
            };
        }
        Ok(())
    }

    fn token(&mut self) -> Result<Token<'a>, Problem> {
        let from = self.at;
        let [marker] = self.array::<1>()?;
        Ok(match Marker::from_u8(marker) {
            Marker::Null => Token::Nil,
            Marker::True => Token::Bool(true),
            Marker::False => Token::Bool(false),
            Marker::FixPos(value) => Token::Unsigned(value.into()),
            Marker::FixNeg(value) => Token::Signed(value.into()),
            Marker::U8 => Token::Unsigned(u8::from_be_bytes(self.array()?).into()),
            Marker::U16 => Token::Unsigned(u16::from_be_bytes(self.array()?).into()),
            Marker::U32 => Token::Unsigned(u32::from_be_bytes(self.array()?).into()),
            Marker::U64 => Token::Unsigned(u64::from_be_bytes(self.array()?)),
            Marker::I8 => Token::Signed(i8::from_be_bytes(self.array()?).into()),
            Marker::I16 => Token::Signed(i16::from_be_bytes(self.array()?).into()),
            Marker::I32 => Token::Signed(i32::from_be_bytes(self.array()?).into()),
            Marker::I64 => Token::Signed(i64::from_be_bytes(self.array()?)),
            Marker::F32 => {
                let value = f32::from_be_bytes(self.array()?).into();
                self.finite(value, from)
            }
            Marker::F64 => {
                let value = f64::from_be_bytes(self.array()?);
                self.finite(value, from)
            }
            Marker::FixStr(length) => self.text(length.into())?,
            Marker::Str8 => self.length::<1>().and_then(|length| self.text(length))?,
            Marker::Str16 => self.length::<2>().and_then(|length| self.text(length))?,
            Marker::Str32 => self.length::<4>().and_then(|length| self.text(length))?,
            Marker::Bin8 => self.length::<1>().and_then(|length| self.binary(length))?,
            Marker::Bin16 => self.length::<2>().and_then(|length| self.binary(length))?,
            Marker::Bin32 => self.length::<4>().and_then(|length| self.binary(length))?,
            Marker::FixArray(length) => Token::Array(length.into()),
            Marker::Array16 => Token::Array(self.length::<2>()?),
            Marker::Array32 => Token::Array(self.length::<4>()?),
            Marker::FixMap(length) => Token::Map(length.into()),
            Marker::Map16 => Token::Map(self.length::<2>()?),
            Marker::Map32 => Token::Map(self.length::<4>()?),
            Marker::FixExt1 => self.extension(1, from)?,
            Marker::FixExt2 => self.extension(2, from)?,
            Marker::FixExt4 => self.extension(4, from)?,
            Marker::FixExt8 => self.extension(8, from)?,
            Marker::FixExt16 => self.extension(16, from)?,
            Marker::Ext8 => self.length::<1>().and_then(|length| self.extension(length, from))?,
            Marker::Ext16 => self.length::<2>().and_then(|length| self.extension(length, from))?,
            Marker::Ext32 => self.length::<4>().and_then(|length| self.extension(length, from))?,
            Marker::Reserved => {
                return Err(Problem { reason: "a byte that MessagePack never uses", byte: from });
            }
        })
    }

    fn finite(&mut self, value: f64, from: usize) -> Token<'a> {
        if value.is_finite() {
            return Token::Float(value);
        }
        self.objection
            .get_or_insert(Problem { reason: "a number that JSON cannot hold", byte: from });
        Token::Refused
    }

    fn text(&mut self, length: usize) -> Result<Token<'a>, Problem> {
        let from = self.at;
        let bytes = self.slice(length)?;
        std::str::from_utf8(bytes).map(Token::Text).map_err(|error| Problem {
            reason: "a string is not UTF-8",
            byte: from + error.valid_up_to(),
        })
    }

    fn binary(&mut self, length: usize) -> Result<Token<'a>, Problem> {
        self.slice(length).map(Token::Binary)
    }

    /// An extension's type byte and data, dropped.
    fn extension(&mut self, length: usize, from: usize) -> Result<Token<'a>, Problem> {
        self.slice(1)?;
        self.slice(length)?;
        self.objection.get_or_insert(Problem { reason: "an extension type", byte: from });
        Ok(Token::Refused)
    }

    fn length<const N: usize>(&mut self) -> Result<usize, Problem> {
        let bytes = self.array::<N>()?;
        Ok(bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.slice(N)?);
        Ok(bytes)
    }

    fn slice(&mut self, length: usize) -> Result<&'a [u8], Problem> {
        let rest = &self.bytes[self.at..];
        let Some(slice) = rest.get(..length) else {
            return Err(Problem { reason: "the document ends too early", byte: self.bytes.len() });
        };
        self.at += length;
        Ok(slice)
    }
}
