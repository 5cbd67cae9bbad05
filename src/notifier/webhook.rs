//! A POST to an address, signed by <https://www.standardwebhooks.com>: `webhook-id`, `webhook-timestamp` (seconds) and
//! `webhook-signature`, which is `v1,` and the base64 of the HMAC-SHA256 of `id.timestamp.body`. The id stays the same over
//! all tries, so that a receiver that answered too late knows what it has already.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use sha2::Sha256;
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

use super::outbox::Undelivered;
use crate::config::Address;

/// The longest wait that a receiver may ask for.
const LONGEST: Duration = Duration::from_secs(3600);
/// A secret in base64, as the standard writes it; all else is the secret itself.
const PREFIX: &str = "whsec_";

pub(super) fn post(
    url: &Address,
    secret_file: Option<&Path>,
    id: &str,
    now: Timestamp,
    message: &[u8],
    limit: Duration,
) -> Result<(), Undelivered> {
    let timestamp = now.as_second().to_string();
    // Read each time: it may be changed while the director runs.
    let signature = secret_file.map(|file| sign_with(file, id, &timestamp, message)).transpose()?;
    // The system's own certificates: a webhook often lies within an organisation that has its own authority.
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    let config = Agent::config_builder()
        .timeout_global(Some(limit))
        .http_status_as_error(false)
        .max_redirects(0)
        .user_agent(concat!("gamdok/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls);
    let mut request = Agent::from(config.build())
        .post(url.whole())
        .header("content-type", "application/json")
        .header("webhook-id", id)
        .header("webhook-timestamp", &timestamp);
    if let Some(signature) = &signature {
        request = request.header("webhook-signature", signature);
    }
    let answer = request.send(message).map_err(|error| Undelivered {
        // The address may be a secret.
        words: error.to_string().replace(url.whole(), &url.to_string()),
        again: Some(Duration::ZERO),
    })?;
    let wait = answer.headers().get("retry-after").and_then(|it| it.to_str().ok()?.trim().parse().ok());
    judge(answer.status().as_u16(), wait)
}

/// What an answer means; `wait`: the seconds that it asks for.
fn judge(status: u16, wait: Option<u64>) -> Result<(), Undelivered> {
    let again = match status {
        200..=299 => return Ok(()),
        // It may be well later.
        408 | 425 | 429 | 500.. => Some(Duration::from_secs(wait.unwrap_or(0)).min(LONGEST)),
        _ => None,
    };
    let words = match status {
        300..=399 => format!("answered {status}: it lies elsewhere; write the new address"),
        401 | 403 => format!("answered {status}: it doesn't accept the message; look at the address and the secret"),
        404 | 410 => format!("answered {status}: there is nothing at this address"),
        _ => format!("answered {status}"),
    };
    Err(Undelivered { words, again })
}

fn sign_with(file: &Path, id: &str, timestamp: &str, message: &[u8]) -> Result<String, Undelivered> {
    let shown = || crate::root::shown(file);
    // It may come back: an unsigned message is none.
    let wrong = |words: String| Undelivered { words, again: Some(Duration::ZERO) };
    let text = std::fs::read_to_string(file)
        .map_err(|error| wrong(format!("`secret_file`: cannot read `{}`: {error}", shown())))?;
    let secret = text.trim();
    let key = match secret.strip_prefix(PREFIX) {
        Some(encoded) => BASE64
            .decode(encoded)
            .map_err(|_| wrong(format!("`secret_file`: what follows `{PREFIX}` in `{}` isn't base64", shown())))?,
        None => secret.as_bytes().to_vec(),
    };
    if key.is_empty() {
        return Err(wrong(format!("`secret_file`: `{}` is empty", shown())));
    }
    Ok(sign(&key, id, timestamp, message))
}

fn sign(key: &[u8], id: &str, timestamp: &str, message: &[u8]) -> String {
    // A key of any length will do.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", message] {
        mac.update(part);
    }
    format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_the_standards() {
        // The example of the standard's own libraries.
        let key = BASE64.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = sign(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn an_answer_says_whether_another_try_helps() {
        let check = |status, wait, again: Option<u64>| {
            let expected = again.map(Duration::from_secs);
            assert_eq!(judge(status, wait).expect_err("refused").again, expected, "{status}");
        };
        assert_eq!(judge(204, None), Ok(()));
        check(301, None, None);
        check(400, Some(5), None);
        check(429, Some(30), Some(30));
        check(503, None, Some(0));
        check(503, Some(1 << 40), Some(3600));
    }
}
