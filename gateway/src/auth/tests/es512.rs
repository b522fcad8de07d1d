//! ES512 (RFC 7518, 3.4) by keys and tokens that others made, and what must not pass for it.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::super::keys::Key;
use super::*;

/// The public key of RFC 7520, 3.1.
const BILBO: &str = r#"{"kty":"EC","kid":"bilbo.baggins@hobbiton.example","use":"sig","crv":"P-521",
    "x":"AHKZLLOsCOzz5cY97ewNUajB957y-C-U88c3v13nmGZx6sYl_oJXu9A5RkTKqjqvjyekWF-7ytDyRXYgCF5cj0Kt",
    "y":"AdymlHvOiLxXkEhayXQnNCvDX4h9htZaCJN34kfmC6pV5OhQHiraVySsUdaQkAgDPrwQrJmbnX9cwlGfP-HqHZR1"}"#;

/// The same key, as OpenSSL writes it.
const BILBO_PEM: &str = "-----BEGIN PUBLIC KEY-----
MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQAcpkss6wI7PPlxj3t7A1RqMH3nvL4
L5Tzxze/XeeYZnHqxiX+gle70DlGRMqqOq+PJ6RYX7vK0PJFdiAIXlyPQq0B3KaU
e86IvFeQSFrJdCc0K8NfiH2G1loIk3fiR+YLqlXk6FAeKtpXJKxR1pCQCAM+vBCs
mZudf1zCUZ8/4eodlHU=
-----END PUBLIC KEY-----
";

/// Signed with that key by PyJWT: `alice`, a minute past `NOW`, the key's `kid`.
const BY_PYJWT: &str = "eyJhbGciOiJFUzUxMiIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSIsInR5cCI6IkpXVCJ9.\
    eyJ1c2VyX2lkIjoiYWxpY2UiLCJleHAiOjE4MDAwMDAwNjB9.\
    AYDeuTHXzky9YHKg0urzqyXlX8XZTubutGo65_aFIILu7N9ieSU1BPshC-vTmoABIOLDkmWL_GyG0uNwZjGsouZWAcWhPEwtuEG1X3b5YxzihdcT1nfPiL5Y_Mt-pV6xekxmvBXgLfTKapE2HqqAK8r9nZX5Vx2lfk2XTNif0yT6XTFg";

fn bilbo() -> Value {
    serde_json::from_str(BILBO).expect("JSON")
}

/// A fresh P-521 key that signs, and its JWK.
struct Signer {
    key: EcdsaKeyPair,
    pem: String,
}

impl Signer {
    fn fresh() -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).expect("a pair");
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P521_SHA512_FIXED_SIGNING, &pair.serialize_der());
        Self { key: key.expect("PKCS#8"), pem: pair.public_key_pem() }
    }

    fn jwk(&self, kid: &str) -> Value {
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(66);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        json!({"kty": "EC", "crv": "P-521", "kid": kid, "alg": "ES512", "x": x, "y": y})
    }

    /// Signs with P-521 and SHA-512, whatever the header says.
    fn sign(&self, header: &Value) -> String {
        let message = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(alice().to_string())
        );
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).expect("signed");
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

#[test]
fn the_example_of_rfc_7515_is_verified() {
    let key = json!({"kty": "EC", "crv": "P-521",
        "x": "AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk",
        "y": "ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2"});
    let key = Key::from_jwk(&key, &[]).expect("a key");
    let signature = "AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn";
    let verifies = |message: &[u8]| key.verifies(TokenAlgorithm::Es512, message, signature);
    assert!(verifies(b"eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA"));
    assert!(!verifies(b"eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZB"));
}

#[tokio::test]
async fn a_token_that_another_library_signed_is_verified_by_pem_and_by_jwk() {
    let good = Ok("alice".to_owned());
    assert_eq!(code(&with_public(BILBO_PEM), BY_PYJWT).await, good);
    assert_eq!(code(&with_public(BILBO), BY_PYJWT).await, good);
    let allowed = |algorithm| Jwt { algorithms: vec![algorithm], ..with_public(BILBO_PEM) };
    assert_eq!(code(&allowed(TokenAlgorithm::Es512), BY_PYJWT).await, good);
    for other in [Algorithm::ES256, Algorithm::ES384, Algorithm::RS512] {
        let refused = TokenVerifier::new(&allowed(other.into())).map(|_| ());
        assert!(refused.is_err_and(|error| error.reason.contains("none of the allowed")));
    }
    // One bit of the signature, the claims, the header; the token of another key.
    let (message, signature) = BY_PYJWT.rsplit_once('.').expect("three parts");
    let mut turned = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    turned[100] ^= 1;
    for bad in [
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(&turned)),
        BY_PYJWT.replace("eyJ1c2Vy", "eyJ1c2Vx"),
        BY_PYJWT.replace("IkpXVCJ9", "IkpXUyJ9"),
        Signer::fresh().sign(&json!({"alg": "ES512"})),
    ] {
        let refused = code(&with_public(BILBO_PEM), &bad).await;
        assert_eq!(refused, Err(ErrorCode::InvalidToken), "{bad}");
    }
}

#[tokio::test]
async fn an_algorithm_is_not_taken_for_another() {
    let signer = Signer::fresh();
    let ours = with_public(&signer.pem);
    let token = |alg: &str| signer.sign(&json!({"alg": alg}));
    assert_eq!(code(&ours, &token("ES512")).await, Ok("alice".into()));
    for alg in ["ES256", "ES384", "ES521", "es512", "HS512", "RS512", "EdDSA", "none", ""] {
        assert_eq!(code(&ours, &token(alg)).await, Err(ErrorCode::InvalidToken), "{alg:?}");
    }
    // Keys of other families, and a curve of another size, do not verify ES512.
    let p384 = pair(&rcgen::PKCS_ECDSA_P384_SHA384);
    for other in [
        with_secret(),
        with_public(&p384.public),
        with_public(&pair(&rcgen::PKCS_RSA_SHA256).public),
        with_public(&pair(&rcgen::PKCS_ED25519).public),
    ] {
        assert_eq!(code(&other, &token("ES512")).await, Err(ErrorCode::InvalidToken));
    }
    let es384 = sign(Algorithm::ES384, &p384.private, None, &alice());
    assert_eq!(code(&ours, &es384).await, Err(ErrorCode::InvalidToken));
    let hmac = sign(Algorithm::HS512, &signer.pem, None, &alice());
    assert_eq!(code(&ours, &hmac).await, Err(ErrorCode::InvalidToken));
}

#[tokio::test]
async fn a_signature_has_two_numbers_of_66_bytes_that_are_not_0() {
    let signer = Signer::fresh();
    let good = signer.sign(&json!({"alg": "ES512"}));
    let (message, signature) = good.rsplit_once('.').expect("three parts");
    let bytes = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    let order: [u8; 66] = {
        // The group's order n; s and s + n would name the same number.
        let mut order = [0xff; 66];
        order[0] = 1;
        order
    };
    let zeros = [0; 132];
    for bad in [
        Vec::new(),
        bytes[..131].to_vec(),
        [&bytes[..], &[0]].concat(),
        [&[0], &bytes[..]].concat(),
        bytes[..66].to_vec(),
        zeros.to_vec(),
        [&bytes[..66], &zeros[..66]].concat(),
        [&zeros[..66], &bytes[66..]].concat(),
        [&bytes[66..], &bytes[..66]].concat(),
        [order, order].concat(),
        vec![0xff; 132],
    ] {
        let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(&bad));
        let refused = code(&with_public(&signer.pem), &token).await;
        assert_eq!(refused, Err(ErrorCode::InvalidToken), "{bad:?}");
    }
    for padded in [format!("{good}=="), format!("{good} "), good.replace('.', "..")] {
        assert!(code(&with_public(&signer.pem), &padded).await.is_err(), "{padded}");
    }
}

#[tokio::test]
async fn a_published_p521_key_is_fetched_and_chosen_by_kid() {
    let (first, second) = (Signer::fresh(), Signer::fresh());
    let mut for_secrets = second.jwk("enc");
    for_secrets["use"] = "enc".into();
    let mut private = second.jwk("private");
    private["d"] = "AAAA".into();
    let set = json!({"keys": [first.jwk("one"), for_secrets, private, {"kty": "strange"}]});
    let fetches = Arc::new(AtomicUsize::new(0));
    let set = Arc::new(parking_lot::Mutex::new(set.to_string()));
    let (url, server) = serve_jwks(set, fetches).await;
    let jwt = Jwt { jwks_url: Some(url), ..Jwt::default() };
    let token = |signer: &Signer, kid: &str| signer.sign(&json!({"alg": "ES512", "kid": kid}));
    assert_eq!(code(&jwt, &token(&first, "one")).await, Ok("alice".into()));
    for kid in ["one", "enc", "private"] {
        assert!(code(&jwt, &token(&second, kid)).await.is_err(), "{kid}");
    }
    let only = |algorithm: TokenAlgorithm| Jwt { algorithms: vec![algorithm], ..jwt.clone() };
    assert!(code(&only(TokenAlgorithm::Es512), &token(&first, "one")).await.is_ok());
    assert!(code(&only(Algorithm::ES384.into()), &token(&first, "one")).await.is_err());
    server.abort();
}

#[test]
fn a_key_is_a_point_of_the_curve_it_names() {
    let with = |name: &str, value: Value| {
        let mut key = bilbo();
        key[name] = value;
        key.to_string()
    };
    assert_eq!(check_public_key(BILBO, &[]), Ok(()));
    assert_eq!(check_public_key(&with("alg", "ES512".into()), &[]), Ok(()));
    let (x, y) = (bilbo()["x"].clone(), bilbo()["y"].clone());
    for (bad, reason) in [
        (with("crv", "P-256".into()), "no point"),
        (with("crv", "P-384".into()), "no point"),
        (with("crv", "secp256k1".into()), "no JWK"),
        (with("crv", Value::Null), "no JWK"),
        (with("x", y), "no point"),
        (with("y", x), "no point"),
        (with("y", "AA".into()), "no point"),
        (with("y", "=".into()), "no JWK"),
        (with("alg", "ES384".into()), "none of the allowed"),
        (with("alg", "ECDH-ES".into()), "no signature algorithm"),
        (with("use", "enc".into()), "encryption"),
        (with("d", "AAAA".into()), "private key"),
        (r#"{"kty":"oct","k":"c2VjcmV0"}"#.to_owned(), "private key"),
        ("{".to_owned(), "no JSON"),
        (BILBO_PEM.replace("MIGbMBAG", "MIGbMBAF"), "no PEM"),
        (BILBO_PEM.replace("UZ8/4eod", "UZ8/4eoc"), "no point"),
    ] {
        let refused = check_public_key(&bad, &[]).expect_err(&bad);
        assert!(refused.contains(reason), "{bad}: {refused}");
    }
    let secp256k1 = "-----BEGIN PUBLIC KEY-----
MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAEt2aK2H5ORTA4yif8HRV/WdkHf7828Ep+
8L6YQRrGaddiwSU4M2u/xZP+2b8F4OvkP9HfzeCj07593kW4HAyUlg==
-----END PUBLIC KEY-----
";
    assert_eq!(
        check_public_key(secp256k1, &[]),
        Err("is no point of P-256, P-384 or P-521".to_owned())
    );
}
