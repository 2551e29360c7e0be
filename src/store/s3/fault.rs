//! What a failed S3 request means. Source: the list of error codes in the Amazon S3 API Reference, and what compatible servers
//! were seen to send. Messages carry the server's status, code and message, never a credential, a key or a signature.

use crate::error::{Error, Kind};
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

/// An error of any S3 operation.
pub(super) trait Failure: std::error::Error + Send + Sync + 'static {
    /// HTTP status, if the server answered.
    fn status(&self) -> Option<u16>;
    /// The server's error code.
    fn code(&self) -> Option<&str>;
    /// The server's message.
    fn message(&self) -> Option<&str>;
    /// Whether no whole answer came.
    fn unanswered(&self) -> bool;
}

impl<E> Failure for SdkError<E, HttpResponse>
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    fn status(&self) -> Option<u16> {
        self.raw_response().map(|r| r.status().as_u16())
    }
    fn code(&self) -> Option<&str> {
        self.as_service_error().and_then(|e| ProvideErrorMetadata::code(e))
    }
    fn message(&self) -> Option<&str> {
        self.as_service_error().and_then(|e| ProvideErrorMetadata::message(e))
    }
    fn unanswered(&self) -> bool {
        matches!(self, SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) | SdkError::ResponseError(_))
    }
}

/// Characters of the server's own words that an error repeats at most.
const QUOTED: usize = 200;

/// What is being done when an upload in parts begins.
pub(super) const STARTING: &str = "starting an upload";

/// The server's error code.
pub(super) fn code(e: &impl Failure) -> Option<&str> {
    e.code()
}

/// Translates the failure of a request; `what` says what was being done.
pub(super) fn fault(what: &str, e: impl Failure) -> Error {
    let status = e.status().unwrap_or(0);
    let code = e.code().unwrap_or("").to_owned();
    if e.unanswered() && !(400..600).contains(&status) {
        return Error::with_source(Kind::Unavailable, format!("{what}: the store does not answer"), e);
    }
    if status == 0 {
        return Error::with_source(Kind::Invalid, format!("{what}: the request could not be made"), e);
    }
    let (mut kind, hint) = meaning(status, &code);
    if what == STARTING && (200..300).contains(&status) {
        // Nothing has happened yet, and trying again will not help: the server does not speak this part of the protocol.
        kind = Kind::Unsupported;
    }
    let said = match (code.is_empty(), e.message()) {
        (true, _) => format!("HTTP {status}"),
        (false, Some(m)) if !m.is_empty() => format!("HTTP {status} {}: {}", plain(&code), plain(m)),
        (false, _) => format!("HTTP {status} {}", plain(&code)),
    };
    let hint = if hint.is_empty() { String::new() } else { format!("; {hint}") };
    Error::new(kind, format!("{what}: the server said {said}{hint}"))
}

/// The server's words as a terminal and a log can bear them: cut, and without control characters of their own.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(QUOTED) {
        match c {
            // Marks that turn the direction of what follows belong to no error message either.
            c if c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                out.extend(c.escape_default());
            }
            c => out.push(c),
        }
    }
    if text.chars().nth(QUOTED).is_some() {
        out.push_str("...");
    }
    out
}

/// Kind of a refusal, and a sentence that helps.
fn meaning(status: u16, code: &str) -> (Kind, &'static str) {
    match code {
        "NoSuchBucket" => return (Kind::Invalid, "the bucket does not exist: check its name and the endpoint"),
        // Some errors come inside an answer that began with 200.
        "PreconditionFailed" => return (Kind::Stale, ""),
        // Another write was under way at the same moment, and nobody knows yet which one holds: S3 asks for another try.
        "ConditionalRequestConflict" => return (Kind::Unavailable, ""),
        "NoSuchKey" | "NoSuchUpload" => return (Kind::NotFound, ""),
        "AccessDenied" => return (Kind::Denied, "these credentials do not allow it"),
        "InvalidPart" | "InvalidPartOrder" | "EntityTooSmall" => return (Kind::Invalid, ""),
        "KeyTooLongError" | "KeyTooLong" => return (Kind::NameTooLong, ""),
        "EntityTooLarge" => return (Kind::TooLarge, ""),
        "QuotaExceeded" | "QuotaExceededException" | "XMinioStorageFull" | "InsufficientStorage" | "TooManyBuckets" => {
            return (Kind::NoSpace, "the bucket or the account is full");
        }
        "RequestTimeTooSkewed" => return (Kind::Denied, "this machine's clock is wrong"),
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => {
            return (Kind::Denied, "the credentials have expired: sign in again");
        }
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "InvalidSecurity" => {
            return (Kind::Denied, "the credentials are not the ones of this server or account");
        }
        "InvalidObjectState" => return (Kind::Denied, "the object is in an archive class: restore it first"),
        "PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
            return (Kind::Invalid, "the bucket is in another region: set the region");
        }
        // The bytes were damaged on their way, or the connection was too slow: sending them again is right.
        "BadDigest"
        | "InvalidDigest"
        | "XAmzContentSHA256Mismatch"
        | "XAmzContentChecksumMismatch"
        | "IncompleteBody"
        | "RequestTimeout"
        | "SlowDown"
        | "OperationAborted" => return (Kind::Unavailable, ""),
        _ => {}
    }
    match status {
        301 | 302 | 307 | 308 => (Kind::Invalid, "the bucket is in another region: set the region"),
        401 | 403 => (Kind::Denied, "these credentials do not allow it"),
        404 => (Kind::NotFound, ""),
        405 | 501 => (Kind::Unsupported, ""),
        408 | 425 | 429 => (Kind::Unavailable, ""),
        409 | 412 => (Kind::Stale, ""),
        413 => (Kind::TooLarge, ""),
        416 => (Kind::Range, ""),
        507 => (Kind::NoSpace, "the store is full"),
        500..=599 => (Kind::Unavailable, ""),
        // An answer that is no error, yet could not be understood: a proxy's page, a broken server.
        200..=299 => (Kind::Unavailable, "the answer could not be understood"),
        _ => (Kind::Invalid, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Answer(u16, &'static str, &'static str);

    impl std::fmt::Display for Answer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("service error")
        }
    }
    impl std::error::Error for Answer {}
    impl Failure for Answer {
        fn status(&self) -> Option<u16> {
            (self.0 != 0).then_some(self.0)
        }
        fn code(&self) -> Option<&str> {
            (!self.1.is_empty()).then_some(self.1)
        }
        fn message(&self) -> Option<&str> {
            (!self.2.is_empty()).then_some(self.2)
        }
        fn unanswered(&self) -> bool {
            self.0 == 0
        }
    }

    #[test]
    fn kinds_follow_status_and_code() {
        for (status, code, kind) in [
            (404, "NoSuchKey", Kind::NotFound),
            (404, "", Kind::NotFound),
            (404, "NoSuchBucket", Kind::Invalid),
            (404, "NoSuchUpload", Kind::NotFound),
            (200, "PreconditionFailed", Kind::Stale),
            (200, "InternalError", Kind::Unavailable),
            (412, "PreconditionFailed", Kind::Stale),
            (409, "ConditionalRequestConflict", Kind::Unavailable),
            (409, "", Kind::Stale),
            (409, "OperationAborted", Kind::Unavailable),
            (403, "AccessDenied", Kind::Denied),
            (403, "QuotaExceeded", Kind::NoSpace),
            (400, "ExpiredToken", Kind::Denied),
            (400, "BadDigest", Kind::Unavailable),
            (400, "InvalidPart", Kind::Invalid),
            (416, "InvalidRange", Kind::Range),
            (429, "", Kind::Unavailable),
            (500, "InternalError", Kind::Unavailable),
            (501, "NotImplemented", Kind::Unsupported),
            (503, "SlowDown", Kind::Unavailable),
            (507, "", Kind::NoSpace),
            (0, "", Kind::Unavailable),
        ] {
            assert_eq!(fault("x", Answer(status, code, "")).kind(), kind, "{status} {code}");
        }
    }

    #[test]
    fn the_message_has_the_code_and_a_sentence_that_helps() {
        let e = fault("writing an object", Answer(403, "AccessDenied", "Access Denied."));
        assert_eq!(
            e.to_string(),
            "writing an object: the server said HTTP 403 AccessDenied: Access Denied.; these credentials do not allow it"
        );
    }

    #[test]
    fn the_words_of_the_server_are_cut_and_hold_no_control_characters() {
        let long: &'static str = Box::leak("é".repeat(100_000).into_boxed_str());
        let e = fault("x", Answer(403, "AccessDenied", long)).to_string();
        assert!(e.contains(&format!("{}...", "é".repeat(QUOTED))) && e.chars().count() < 2 * QUOTED, "{e}");
        let e = fault("x", Answer(400, long, "")).to_string();
        assert!(e.chars().count() < 2 * QUOTED, "{e}");
        let e = fault("x", Answer(403, "A\u{1b}]0;b\u{7}", "one\r\ntwo\u{9b}31m\u{202e}")).to_string();
        assert!(!e.chars().any(|c| c.is_control() || c == '\u{202e}'), "{e:?}");
        assert!(e.contains(r"A\u{1b}]0;b\u{7}: one\r\ntwo\u{9b}31m\u{202e}"), "{e}");
    }
}
