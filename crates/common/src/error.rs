//! Everything that can go wrong with a request, as one enum. HTTP's part is `http/problem.rs`.
//!
//! The message that a client gets is never the message that is logged: a problem says what the client can do,
//! [`Error::cause`] says what happened, for the operator.

use std::borrow::Cow;
use std::fmt::{self, Display};

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::access::RateHeaders;

/// Why a request was not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The request does not say who sends it, and must.
    CredentialsNeeded,
    /// What the request presents is no valid token.
    InvalidToken,
    /// The request's token does not allow what it asks for: the scope that would.
    InsufficientScope(&'static str),
    /// The request has two `Authorization` headers.
    TwoCredentials,
    /// Its client has used up its budget of requests, or its address that of attempts.
    RateLimited(RateHeaders),
    /// The request is for a host that is none of the service's names, which is open.
    ForeignHost,
    /// Members of the body are missing or wrong: all of them.
    InvalidMembers(Vec<MemberError>),
    /// The body is no JSON object; why not.
    MalformedBody(String),
    /// The path holds a name that nothing can have; why not.
    InvalidName(&'static str),
    /// There is no record with this key.
    NotFound,
    /// There is a record with this key already.
    AlreadyExists,
    /// The record is not, or no longer, as a condition of the request requires.
    PreconditionFailed,
    /// The body did not arrive within its time.
    BodyTimeout,
    /// The body is larger than allowed.
    BodyTooLarge,
    /// The body is not `application/json`, or compressed.
    UnsupportedMediaType(&'static str),
    /// PostgreSQL cannot serve the request now: away, starting, read-only, out of connections, too slow. Or the cache
    /// is suspended, and a write would have to wait for longer than its request.
    Unavailable(String),
    /// The grant of the cache changed under a write. It has changed nothing, and may try again: no client sees this.
    Suspended,
    /// The service is starting or stopping, or lacks what it needs: the answer of `/readyz`.
    NotReady(&'static str),
    /// Several writes cannot be done together, perhaps since another session holds what one of them needs. Nothing has
    /// changed, and each is tried alone: no client sees this.
    Held,
    /// The line for PostgreSQL or for Redis is full.
    Overloaded,
    /// PostgreSQL was lost while the write was on its way: it may have happened, or not.
    OutcomeUnknown(String),
    /// A bug in the service.
    Internal(String),
}

impl Error {
    /// A request's work was not done by its deadline, and never will be.
    #[must_use]
    pub fn waited_too_long() -> Self {
        Self::Unavailable("queue and query took, or would have taken, longer than the deadline".into())
    }

    /// A database thread panicked under the work that it did.
    #[must_use]
    pub fn thread_panicked() -> Self {
        Self::Internal("a database thread panicked".into())
    }

    fn what(&self) -> &'static str {
        match self {
            Self::CredentialsNeeded => "credentials are needed",
            Self::InvalidToken => "the token is not valid",
            Self::InsufficientScope(_) => "the token does not allow this",
            Self::TwoCredentials => "there are two Authorization headers",
            Self::RateLimited(_) => "the client sends more than it may",
            Self::ForeignHost => "the host is none of the service's names",
            Self::InvalidMembers(_) => "members of the body are missing or wrong",
            Self::MalformedBody(_) => "the body is not a JSON object",
            Self::InvalidName(_) => "the path holds no valid name",
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::PreconditionFailed => "the precondition failed",
            Self::BodyTimeout => "the body took too long to arrive",
            Self::BodyTooLarge => "the body is too large",
            Self::UnsupportedMediaType(_) => "the body's media type is not supported",
            Self::Unavailable(_) | Self::Suspended | Self::Held => "a store cannot be used now",
            Self::NotReady(_) => "the service is not ready",
            Self::Overloaded => "too many requests are waiting",
            Self::OutcomeUnknown(_) => "the outcome of the write is unknown",
            Self::Internal(_) => "the service made a mistake",
        }
    }

    /// What happened, for the log; only where the service or its stores are the cause.
    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        match self {
            Self::Unavailable(cause) | Self::OutcomeUnknown(cause) | Self::Internal(cause) => Some(cause),
            _ => None,
        }
    }
}

/// The only place where a database error gets its meaning.
impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        use DatabaseErrorKind as Kind;
        match &error {
            DieselError::NotFound => Self::NotFound,
            DieselError::DatabaseError(Kind::UniqueViolation, _) => Self::AlreadyExists,
            // A valid request cannot cause these.
            DieselError::DatabaseError(Kind::CheckViolation | Kind::NotNullViolation, _)
            | DieselError::QueryBuilderError(_)
            | DieselError::DeserializationError(_)
            | DieselError::SerializationError(_) => Self::Internal(error.to_string()),
            // Diesel hides the SQLSTATE, and messages come in the server's language. Our statements are few and tested,
            // so the cause is the server's state: no connection, time-out, lock, disk, shutdown, role.
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

/// What a command ends with; an error is printed and becomes exit code 1.
pub type CommandResult = Result<(), Box<dyn std::error::Error>>;

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what())
    }
}

impl std::error::Error for Error {}

/// One wrong member of a request body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct MemberError {
    /// What is wrong with the member.
    #[schema(example = "must not be empty")]
    pub detail: Cow<'static, str>,
    /// Where the member is: a JSON Pointer as a URI fragment (RFC 6901, section 6).
    #[schema(example = "#/info")]
    pub pointer: Cow<'static, str>,
}

/// Why a text is not valid: the end of a sentence for the person who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid(pub &'static str);
