//! What a client sees of an error: problem details (RFC 9457), and the HTTP status of each kind.
//!
//! [`KINDS`] also says which operations can answer with a kind. `description.rs` makes their OpenAPI responses of it.

use std::borrow::Cow;

use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::{Error, MemberError};

/// The body of every error answer: problem details (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem<'a> {
    /// A path that the service answers with an explanation.
    #[serde(rename = "type")]
    #[schema(example = "/problems/unknown-user")]
    pub type_: String,
    /// The kind of problem; the same each time.
    pub title: &'static str,
    /// The HTTP status once more.
    pub status: u16,
    /// What is wrong with this request.
    pub detail: Cow<'a, str>,
    /// The path that was asked for.
    pub instance: Cow<'a, str>,
    /// The members that are wrong.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(nullable = false)]
    pub errors: &'a [MemberError],
}

/// A kind of problem: what `/problems/<slug>` explains.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// The last segment of its `type`.
    pub slug: &'static str,
    /// Its status.
    pub status: StatusCode,
    /// Its title.
    pub title: &'static str,
    /// What to know about it; also the `detail` where there is no closer one.
    pub explanation: &'static str,
    /// The operations that can answer with it. Empty for what is answered before an operation is found.
    pub groups: &'static [Group],
}

/// Operations that can answer with the same kinds of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Says whether the service is ready.
    Ready,
    /// Reads one record by the name in the path.
    Read,
    /// Creates the record that is in the body.
    Create,
    /// Replaces the record that the path names, under a condition, with what is in the body.
    Replace,
    /// Deletes the record that the path names, under a condition.
    Delete,
}

macro_rules! kinds {
    ($($name:ident = $status:ident [$($group:ident)*] $slug:literal $title:literal: $explanation:literal;)*) => {
        $(const $name: Kind = Kind {
            slug: $slug,
            status: StatusCode::$status,
            title: $title,
            explanation: $explanation,
            groups: &[$(Group::$group),*],
        };)*
        /// Every kind of problem.
        pub const KINDS: &[Kind] = &[$($name),*];
    };
}

kinds! {
    CREDENTIALS_NEEDED = UNAUTHORIZED []
        "credentials-needed" "The request must say who sends it":
        "Send a token: `Authorization: Bearer ut_...`. Whoever runs the service gives them out.";
    INVALID_TOKEN = UNAUTHORIZED []
        "invalid-token" "The token is not valid":
        "It is malformed, unknown, expired or revoked. Whoever runs the service gives out others.";
    INSUFFICIENT_SCOPE = FORBIDDEN []
        "insufficient-scope" "The token does not allow this":
        "The token is valid, and lacks the scope that this request needs.";
    RATE_LIMITED = TOO_MANY_REQUESTS []
        "rate-limited" "The client sends more than it may":
        "The client has used up its budget of requests, or its address that of attempts with tokens that are not valid. Try again after the seconds in Retry-After.";
    FOREIGN_HOST = MISDIRECTED_REQUEST []
        "foreign-host" "The service has another name":
        "A service that asks nobody for a token answers only to IP addresses, to localhost, and to the names in its setting ALLOWED_HOSTS: a web page of another name that leads here could otherwise do all that its visitor may.";
    INVALID_MEMBERS = BAD_REQUEST [Create Replace]
        "invalid-members" "Members of the body are missing or wrong":
        "The list `errors` names each wrong member and what is wrong with it.";
    MALFORMED_BODY = BAD_REQUEST [Create Replace]
        "malformed-body" "The body is not a JSON object":
        "The body must be one JSON object (RFC 8259) in UTF-8, each member given once.";
    INVALID_NAME = BAD_REQUEST [Read Replace Delete]
        "invalid-name" "No user can have this name":
        "A name is 1 to 128 bytes of UTF-8 after NFC, without control, format, private-use or unassigned characters, without white space at its ends, and not `.` or `..`. U+200C and U+200D are allowed where a script needs them. In a path a name is percent-encoded.";
    BAD_REQUEST = BAD_REQUEST []
        "bad-request" "The request is malformed":
        "The service could not make sense of the request.";
    UNKNOWN_USER = NOT_FOUND [Read Replace Delete]
        "unknown-user" "There is no such user":
        "No user has this name. Names are compared exactly; case matters.";
    NO_SUCH_PATH = NOT_FOUND []
        "no-such-path" "There is nothing at this path":
        "The paths of this service are listed in /openapi.json and shown at /docs/.";
    METHOD_NOT_ALLOWED = METHOD_NOT_ALLOWED []
        "method-not-allowed" "The path does not have this method":
        "The header Allow lists the methods that the path has.";
    TARGET_TOO_LONG = URI_TOO_LONG []
        "target-too-long" "The path is too long":
        "A path and its query may have 8,000 bytes at most.";
    BODY_TIMEOUT = REQUEST_TIMEOUT [Create Replace]
        "body-timeout" "The body took too long to arrive":
        "A request's body must arrive within 5 seconds. Send it again.";
    NAME_TAKEN = CONFLICT [Create]
        "name-taken" "The name is taken":
        "A user with this name is registered already. The request changed nothing.";
    PRECONDITION_FAILED = PRECONDITION_FAILED [Read Create Replace Delete]
        "precondition-failed" "The user is not as the request wants it":
        "The request has `If-Match` or `If-None-Match`, and the user does not meet it: perhaps somebody has changed it since its ETag was read. The request changed nothing. Read the user again, and decide anew.";
    BODY_TOO_LARGE = PAYLOAD_TOO_LARGE [Create Replace]
        "body-too-large" "The body is too large":
        "A body may have 128 KiB at most.";
    UNSUPPORTED_MEDIA_TYPE = UNSUPPORTED_MEDIA_TYPE [Create Replace]
        "unsupported-media-type" "The body's media type is not supported":
        "Send `Content-Type: application/json`, without a Content-Encoding.";
    UNAVAILABLE = SERVICE_UNAVAILABLE [Read Create Replace Delete]
        "unavailable" "The service cannot answer now":
        "A store that the request needs is away or too slow, or a write would have to wait too long until no copy of what it changes is left. The request changed nothing. Try again after the seconds in Retry-After.";
    NOT_READY = SERVICE_UNAVAILABLE [Ready]
        "not-ready" "The service is not ready":
        "It is starting or stopping, or its database is away.";
    OVERLOADED = SERVICE_UNAVAILABLE [Read Create Replace Delete]
        "overloaded" "Too many requests are waiting":
        "The request was refused before any work was done. Try again after the seconds in Retry-After.";
    OUTCOME_UNKNOWN = SERVICE_UNAVAILABLE [Create Replace Delete]
        "outcome-unknown" "The outcome of the write is unknown":
        "The database was lost, or too slow, while the write was on its way: it may have happened, or not. A retry is safe: what did happen is then answered with 409 (register), 404 (delete) or 412 (If-Match), or done once more.";
    INTERNAL = INTERNAL_SERVER_ERROR [Read Create Replace Delete]
        "internal" "The service made a mistake":
        "It was logged under the request's X-Request-Id.";
}

impl Error {
    /// The kind of problem that a client sees.
    #[must_use]
    pub const fn kind(&self) -> &'static Kind {
        match self {
            Self::CredentialsNeeded => &CREDENTIALS_NEEDED,
            Self::InvalidToken => &INVALID_TOKEN,
            Self::InsufficientScope(_) => &INSUFFICIENT_SCOPE,
            Self::TwoCredentials => &BAD_REQUEST,
            Self::RateLimited(_) => &RATE_LIMITED,
            Self::ForeignHost => &FOREIGN_HOST,
            Self::InvalidMembers(_) => &INVALID_MEMBERS,
            Self::MalformedBody(_) => &MALFORMED_BODY,
            Self::InvalidName(_) => &INVALID_NAME,
            Self::NotFound => &UNKNOWN_USER,
            Self::AlreadyExists => &NAME_TAKEN,
            Self::PreconditionFailed => &PRECONDITION_FAILED,
            Self::BodyTimeout => &BODY_TIMEOUT,
            Self::BodyTooLarge => &BODY_TOO_LARGE,
            Self::UnsupportedMediaType(_) => &UNSUPPORTED_MEDIA_TYPE,
            Self::Unavailable(_) | Self::Suspended | Self::Held => &UNAVAILABLE,
            Self::NotReady(_) => &NOT_READY,
            Self::Overloaded => &OVERLOADED,
            Self::OutcomeUnknown(_) => &OUTCOME_UNKNOWN,
            Self::Internal(_) => &INTERNAL,
        }
    }

    /// The problem details of this error for a request to the path `instance`.
    #[must_use]
    pub fn problem<'a>(&'a self, instance: &'a str) -> Problem<'a> {
        let mut problem = self.kind().problem(instance);
        match self {
            Self::InsufficientScope(scope) => {
                problem.detail = format!("The request needs a token with the scope `{scope}`.").into();
            }
            Self::TwoCredentials => problem.detail = "There are two Authorization headers.".into(),
            Self::InvalidMembers(errors) => problem.errors = errors,
            Self::MalformedBody(detail) => problem.detail = detail.into(),
            Self::InvalidName(what) => problem.detail = format!("The name {what}.").into(),
            Self::NotReady(detail) | Self::UnsupportedMediaType(detail) => problem.detail = (*detail).into(),
            _ => {}
        }
        problem
    }
}

impl Kind {
    /// The kind for an error that actix-web answered by itself, known by its status alone.
    #[must_use]
    pub fn of_status(status: StatusCode) -> Option<&'static Self> {
        match status {
            StatusCode::BAD_REQUEST => Some(&BAD_REQUEST),
            StatusCode::NOT_FOUND => Some(&NO_SUCH_PATH),
            StatusCode::METHOD_NOT_ALLOWED => Some(&METHOD_NOT_ALLOWED),
            StatusCode::URI_TOO_LONG => Some(&TARGET_TOO_LONG),
            StatusCode::REQUEST_TIMEOUT => Some(&BODY_TIMEOUT),
            StatusCode::PAYLOAD_TOO_LARGE => Some(&BODY_TOO_LARGE),
            _ if status.is_server_error() => Some(&INTERNAL),
            _ => None,
        }
    }

    /// The problem details of this kind for a request to the path `instance`.
    #[must_use]
    pub fn problem<'a>(&self, instance: &'a str) -> Problem<'a> {
        Problem {
            type_: format!("/problems/{}", self.slug),
            title: self.title,
            status: self.status.as_u16(),
            detail: self.explanation.into(),
            instance: instance.into(),
            errors: &[],
        }
    }
}

impl Problem<'_> {
    /// The same for clients that reach the service under `prefix`.
    #[must_use]
    pub fn behind(mut self, prefix: &str) -> Self {
        if !prefix.is_empty() {
            self.type_.insert_str(0, prefix);
            self.instance = [prefix, &self.instance].concat().into();
        }
        self
    }
}

impl Error {
    /// What an answer says of how to be let in (RFC 6750, section 3); none if it is about something else.
    fn challenge(&self) -> Option<HeaderValue> {
        Some(match self {
            Self::CredentialsNeeded => HeaderValue::from_static(r#"Bearer realm="users""#),
            Self::InvalidToken => HeaderValue::from_static(r#"Bearer realm="users", error="invalid_token""#),
            Self::TwoCredentials => {
                HeaderValue::from_static(r#"Bearer realm="users", error="invalid_request""#)
            }
            Self::InsufficientScope(scope) => {
                let challenge =
                    format!(r#"Bearer realm="users", error="insufficient_scope", scope="{scope}""#);
                HeaderValue::try_from(challenge).ok()?
            }
            _ => return None,
        })
    }
}

/// Status and headers: the middleware writes the body, which needs the request.
impl actix_web::ResponseError for Error {
    fn status_code(&self) -> StatusCode {
        self.kind().status
    }

    fn error_response(&self) -> actix_web::HttpResponse {
        let mut response = actix_web::HttpResponse::new(self.status_code());
        if let Some(challenge) = self.challenge() {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        if let Self::RateLimited(rate) = self {
            response.headers_mut().insert(RETRY_AFTER, rate.retry_after().into());
            rate.write(response.headers_mut());
        }
        response
    }
}
