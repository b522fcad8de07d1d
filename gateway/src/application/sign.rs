//! Signatures of calls to the application, by the Standard Webhooks specification: HMAC-SHA256 over id, timestamp
//! and body. Knows no HTTP.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Begins a secret whose rest is the key in base64.
const PREFIX: &str = "whsec_";

/// The keys of one webhook.
#[derive(Debug)]
pub struct SigningKeys {
    keys: Vec<hmac::Key>,
}

/// The text is no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("begins with `whsec_`, so its rest must be a key in base64")]
pub struct InvalidSecret;

/// Bytes of the key that a secret stands for.
///
/// # Errors
/// A `whsec_` secret that is not base64.
fn key_of(secret: &str) -> Result<Vec<u8>, InvalidSecret> {
    match secret.strip_prefix(PREFIX) {
        Some(encoded) => match STANDARD.decode(encoded) {
            Ok(key) if !key.is_empty() => Ok(key),
            _ => Err(InvalidSecret),
        },
        None => Ok(secret.as_bytes().to_vec()),
    }
}

impl SigningKeys {
    /// Takes `whsec_` and base64, or any other text, whose bytes are the key. Libraries for receivers take a text
    /// without the prefix for base64 where it is that; such a text signs both ways, as the specification allows.
    ///
    /// # Errors
    /// A `whsec_` secret that is not base64.
    pub fn new(secret: &str) -> Result<Self, InvalidSecret> {
        let mut keys = vec![key_of(secret)?];
        if !secret.starts_with(PREFIX)
            && let Ok(decoded) = STANDARD.decode(secret)
            && !decoded.is_empty()
        {
            keys.push(decoded);
        }
        Ok(Self { keys: keys.iter().map(|key| hmac::Key::new(hmac::HMAC_SHA256, key)).collect() })
    }

    /// How long the key of a secret is, in bytes.
    ///
    /// # Errors
    /// As [`SigningKeys::new`].
    pub fn length(secret: &str) -> Result<usize, InvalidSecret> {
        key_of(secret).map(|key| key.len())
    }

    /// The header `webhook-signature`. `timestamp` is in Unix seconds.
    pub(super) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let head = format!("{id}.{timestamp}.");
        let signatures = self.keys.iter().map(|key| {
            let mut context = hmac::Context::with_key(key);
            context.update(head.as_bytes());
            context.update(body);
            format!("v1,{}", STANDARD.encode(context.sign()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector that the specification's libraries are held to.
    #[test]
    fn a_signature_is_the_specifications() {
        let keys = SigningKeys::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a secret");
        let body = br#"{"test": 2432232314}"#;
        assert_eq!(
            keys.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn a_text_that_may_be_base64_signs_both_ways() {
        let one = SigningKeys::new("not base64!").expect("a secret").sign("a", 1, b"x");
        assert_eq!(one.split(' ').count(), 1);
        let both = SigningKeys::new("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw==").expect("a secret");
        let prefixed =
            SigningKeys::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw==").expect("a secret");
        let signatures = both.sign("a", 1, b"x");
        assert_eq!(signatures.split(' ').nth(1), Some(&*prefixed.sign("a", 1, b"x")));
    }

    #[test]
    fn a_prefixed_secret_must_be_base64() {
        assert_eq!(SigningKeys::new("whsec_***").err(), Some(InvalidSecret));
        assert_eq!(SigningKeys::length("whsec_"), Err(InvalidSecret));
        assert_eq!(SigningKeys::length("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw=="), Ok(22));
        assert_eq!(SigningKeys::length("0123456789"), Ok(10));
    }
}
