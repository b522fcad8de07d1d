//! The JSON scanner (RFC 8259). Recursion is bounded by [`DEPTH_MAX`].

use std::borrow::Cow;

use super::{DEPTH_MAX, Document, Field, Fields, Keys, Problem};
use crate::Payload;

/// Reads one JSON document that must be an object.
pub(crate) fn read_json(bytes: &[u8]) -> Document<'_> {
    let mut fields = Fields::default();
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let problem = Problem { reason: "not UTF-8", byte: error.valid_up_to() };
            return Document { fields, problem: Some(problem) };
        }
    };
    let mut scanner = Scanner::new(text);
    let read = scanner.document(&mut fields);
    Document::new(fields, read, scanner.objection)
}

/// Checks one JSON value of any kind, which stands inside a document already, and takes it as a
/// payload: byte for byte, or without whitespace between tokens where that holds line breaks.
pub(crate) fn compact_json(text: &str) -> Result<Payload, Problem> {
    let mut scanner = Scanner::new(text);
    scanner.whitespace();
    let payload = scanner.payload(2)?;
    scanner.end()?;
    scanner.objection.map_or(Ok(payload), Err)
}

struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    /// Line breaks met between tokens.
    line_breaks: usize,
    keys: Keys<'a>,
    /// The first thing that is well-formed but refused.
    objection: Option<Problem>,
}

impl<'a> Scanner<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            bytes: text.as_bytes(),
            at: 0,
            line_breaks: 0,
            keys: Keys::default(),
            objection: None,
        }
    }

    fn object_to(&mut self, reason: &'static str, byte: usize) {
        self.objection.get_or_insert(Problem { reason, byte });
    }

    fn fail<T>(&self, reason: &'static str) -> Result<T, Problem> {
        Err(Problem { reason, byte: self.at })
    }

    fn document(&mut self, fields: &mut Fields<'a>) -> Result<(), Problem> {
        self.whitespace();
        if self.peek() != Some(b'{') {
            return self.fail("a message is a JSON object");
        }
        self.object(1, |scanner, key| {
            if key == "payload" {
                fields.payload = Some(scanner.payload(2)?);
            } else if let Some(field) = fields.named(key) {
                *field = match scanner.peek() {
                    Some(b'"') => Field::Text(scanner.string()?),
                    first => {
                        scanner.value(2)?;
                        if first == Some(b'n') { Field::Null } else { Field::Other }
                    }
                };
            } else {
                scanner.value(2)?;
            }
            Ok(())
        })?;
        self.end()
    }

    fn end(&mut self) -> Result<(), Problem> {
        self.whitespace();
        if self.at < self.bytes.len() {
            self.fail("more after the end of the document")
        } else {
            Ok(())
        }
    }

    fn payload(&mut self, depth: usize) -> Result<Payload, Problem> {
        let (from, line_breaks) = (self.at, self.line_breaks);
        self.value(depth)?;
        let raw = &self.bytes[from..self.at];
        Ok(Payload::from_json(if self.line_breaks == line_breaks {
            raw.to_vec()
        } else {
            compact(raw)
        }))
    }

    fn value(&mut self, depth: usize) -> Result<(), Problem> {
        match self.peek() {
            Some(b'{' | b'[') if depth > DEPTH_MAX => self.too_deep(),
            Some(b'{') => self.object(depth, |scanner, _| scanner.value(depth + 1)),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.skip_string().map(|_| ()),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true"),
            Some(b'f') => self.word("false"),
            Some(b'n') => self.word("null"),
            Some(_) => self.fail("expected a value"),
            None => self.fail("the document ends too early"),
        }
    }

    fn object(
        &mut self,
        depth: usize,
        mut member: impl FnMut(&mut Self, &str) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        debug_assert!(depth <= DEPTH_MAX);
        let first_key = self.keys.len();
        self.at += 1;
        self.whitespace();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            let key_at = self.at;
            if self.peek() != Some(b'"') {
                return self.fail("expected a key");
            }
            let key = self.string()?;
            self.whitespace();
            self.expect(b':', "expected a colon")?;
            self.whitespace();
            member(self, &key)?;
            self.keys.push(key, key_at);
            self.whitespace();
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    self.whitespace();
                }
                _ => {
                    self.expect(b'}', "expected a comma or a closing brace")?;
                    if let Err(twice) = self.keys.close(first_key) {
                        self.objection.get_or_insert(twice);
                    }
                    return Ok(());
                }
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), Problem> {
        self.at += 1;
        self.whitespace();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(depth + 1)?;
            self.whitespace();
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    self.whitespace();
                }
                _ => return self.expect(b']', "expected a comma or a closing bracket"),
            }
        }
    }

    /// Passes over what is nested too deep by counting brackets: the document is refused anyway.
    fn too_deep(&mut self) -> Result<(), Problem> {
        self.object_to("nested deeper than 128 levels", self.at);
        let mut open = 0_usize;
        loop {
            match self.peek() {
                None => return self.fail("the document ends too early"),
                Some(b'"') => {
                    self.skip_string()?;
                    continue;
                }
                Some(b'{' | b'[') => open += 1,
                Some(b'}' | b']') => open -= 1,
                Some(_) => {}
            }
            self.at += 1;
            if open == 0 {
                return Ok(());
            }
        }
    }

    /// A string's value; borrowed where nothing is escaped.
    fn string(&mut self) -> Result<Cow<'a, str>, Problem> {
        let from = self.at;
        let escaped = self.skip_string()?;
        if !escaped {
            return Ok(Cow::Borrowed(&self.text[from + 1..self.at - 1]));
        }
        serde_json::from_str(&self.text[from..self.at])
            .map(Cow::Owned)
            .map_err(|_| Problem { reason: "a malformed string", byte: from })
    }

    /// Passes over a string; whether it holds escapes.
    fn skip_string(&mut self) -> Result<bool, Problem> {
        self.at += 1;
        let mut escaped = false;
        loop {
            self.plain_text();
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(_) => return self.fail("a control character in a string"),
                None => return self.fail("a string without its end"),
            }
        }
    }

    /// Moves to the next byte that means something in a string.
    fn plain_text(&mut self) {
        let special = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
        // Sixteen at a time without a branch inside, which the compiler turns into vector code.
        while let Some(chunk) = self.bytes.get(self.at..self.at + 16) {
            if chunk.iter().fold(false, |found, byte| found | special(*byte)) {
                break;
            }
            self.at += 16;
        }
        while self.peek().is_some_and(|byte| !special(byte)) {
            self.at += 1;
        }
    }

    fn escape(&mut self) -> Result<(), Problem> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
            Some(b'u') => match self.unit(self.at) {
                Some(0xD800..=0xDBFF) => match self.unit(self.at + 6) {
                    Some(0xDC00..=0xDFFF) => self.at += 12,
                    _ => return self.fail("half a surrogate pair"),
                },
                Some(0xDC00..=0xDFFF) => return self.fail("half a surrogate pair"),
                Some(_) => self.at += 6,
                None => return self.fail("an unknown escape"),
            },
            _ => return self.fail("an unknown escape"),
        }
        Ok(())
    }

    /// The UTF-16 unit of a `\uXXXX` that stands at `at`.
    fn unit(&self, at: usize) -> Option<u16> {
        let digits = self.bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
        digits.iter().try_fold(0, |unit, digit| {
            Some(unit << 4 | u16::try_from(char::from(*digit).to_digit(16)?).ok()?)
        })
    }

    fn number(&mut self) -> Result<(), Problem> {
        let from = self.at;
        self.at += usize::from(self.peek() == Some(b'-'));
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        let exponent = matches!(self.peek(), Some(b'e' | b'E'));
        if exponent {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            self.digits()?;
        }
        // Fewer than 300 digits without an exponent are always in range.
        if (exponent || self.at - from > 300)
            && !self.text[from..self.at].parse::<f64>().is_ok_and(f64::is_finite)
        {
            self.object_to("a number out of range", from);
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Problem> {
        let from = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == from { self.fail("expected a digit") } else { Ok(()) }
    }

    fn word(&mut self, word: &'static str) -> Result<(), Problem> {
        if self.bytes[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(())
        } else {
            self.fail("expected a value")
        }
    }

    fn expect(&mut self, byte: u8, reason: &'static str) -> Result<(), Problem> {
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            self.fail(reason)
        }
    }

    fn whitespace(&mut self) {
        while let Some(byte @ (b' ' | b'\t' | b'\n' | b'\r')) = self.peek() {
            self.line_breaks += usize::from(matches!(byte, b'\n' | b'\r'));
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }
}

/// Drops whitespace between the tokens of a valid document.
fn compact(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let (mut in_string, mut escaped) = (false, false);
    for &byte in raw {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            continue;
        } else {
            in_string = byte == b'"';
        }
        out.push(byte);
    }
    out
}
