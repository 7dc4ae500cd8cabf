//! Which node's agent is calling: its service account token, checked by the API server.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use controller_api::names;
use guest_units::Chain;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, PostParams};
use scheduler_protocol::{AUDIENCE, RefusalCode};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// A token that was good is taken as good for so long, and no longer than it says itself: ten thousand nodes ask the API server less than
/// two hundred times a second about their tokens.
const KEEP_GOOD: Duration = Duration::from_secs(60);
/// A token that was not is not asked about again for so long.
const KEEP_BAD: Duration = Duration::from_secs(2);
/// More than there are nodes.
const MAX_CACHED: usize = 32_768;
/// No token is longer.
const MAX_TOKEN_BYTES: usize = 8192;
/// So many questions to the API server at a time.
const MAX_REVIEWS: usize = 16;
/// A question waits so long for its turn.
const TURN_LIMIT: Duration = Duration::from_secs(1);

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The node that its token is bound to.
    pub(crate) node: String,
}

/// Why a caller is turned away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    #[error("a bearer token of audience {AUDIENCE} is needed")]
    NoToken,
    #[error("the token is not valid for audience {AUDIENCE}")]
    Invalid,
    #[error("the token is not that of an agent bound to a node")]
    NotAnAgent,
    #[error("the API server cannot be asked about the token now")]
    Unavailable,
    #[error("too many tokens are asked about at a time")]
    Busy,
}

impl AuthError {
    pub(crate) fn code(&self) -> RefusalCode {
        match self {
            Self::NoToken | Self::Invalid => RefusalCode::Unauthenticated,
            Self::NotAnAgent => RefusalCode::Forbidden,
            Self::Unavailable => RefusalCode::NotReady,
            Self::Busy => RefusalCode::Busy,
        }
    }
}

type Verdict = Result<Caller, AuthError>;

/// Asks the API server, and remembers for seconds.
pub(crate) struct Authenticator {
    api: Api<TokenReview>,
    limit: Duration,
    reviews: Semaphore,
    cache: Mutex<HashMap<[u8; 32], (Verdict, Instant)>>,
}

impl Authenticator {
    pub(crate) fn new(client: Client, limit: Duration) -> Self {
        let cache = Mutex::new(HashMap::new());
        Self { api: Api::all(client), limit, reviews: Semaphore::new(MAX_REVIEWS), cache }
    }

    pub(crate) async fn caller(&self, headers: &HeaderMap) -> Verdict {
        let token = bearer(headers)?;
        let hash: [u8; 32] = Sha256::digest(token).into();
        if let Some(verdict) = self.cached(&hash) {
            return verdict;
        }
        let verdict = self.review(token).await;
        if !matches!(verdict, Err(AuthError::Unavailable | AuthError::Busy)) {
            self.keep(hash, verdict.clone(), token);
        }
        verdict
    }

    fn cached(&self, hash: &[u8; 32]) -> Option<Verdict> {
        // A panic while holding the lock cannot leave the map half-written.
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(hash).filter(|(_, until)| Instant::now() < *until).map(|(it, _)| it.clone())
    }

    fn keep(&self, hash: [u8; 32], verdict: Verdict, token: &str) {
        let now = Instant::now();
        let until = now + if verdict.is_ok() { keep_good(token) } else { KEEP_BAD };
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= MAX_CACHED {
            cache.retain(|_, (_, until)| now < *until);
        }
        if cache.len() < MAX_CACHED {
            cache.insert(hash, (verdict, until));
        }
    }

    async fn review(&self, token: &str) -> Verdict {
        let Ok(Ok(_turn)) = timeout(TURN_LIMIT, self.reviews.acquire()).await else {
            return Err(AuthError::Busy);
        };
        let review = TokenReview {
            metadata: ObjectMeta::default(),
            spec: TokenReviewSpec {
                audiences: Some(vec![AUDIENCE.to_owned()]),
                token: token.to_owned(),
            },
            status: None,
        };
        match timeout(self.limit, self.api.create(&PostParams::default(), &review)).await {
            Ok(Ok(review)) => verdict(review.status.unwrap_or_default()),
            Ok(Err(err)) => {
                tracing::warn!(error = %Chain(&err), "token not reviewed");
                Err(AuthError::Unavailable)
            }
            Err(_) => {
                tracing::warn!(limit = ?self.limit, "token not reviewed in time");
                Err(AuthError::Unavailable)
            }
        }
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, AuthError> {
    let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = value.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
    token.filter(|it| !it.is_empty() && it.len() <= MAX_TOKEN_BYTES).ok_or(AuthError::NoToken)
}

/// The API server has said that the token is good: what it says of its end is true.
fn keep_good(token: &str) -> Duration {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
    }
    let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims: Option<Claims> = claims.and_then(|text| serde_json::from_slice(&text).ok());
    let left = claims.map(|claims| claims.exp.saturating_sub(Timestamp::now().as_second()));
    left.map_or(KEEP_GOOD, |left| {
        KEEP_GOOD.min(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
    })
}

/// What the API server's word means.
fn verdict(status: TokenReviewStatus) -> Verdict {
    let ours = status.audiences.iter().flatten().any(|audience| audience == AUDIENCE);
    if status.authenticated != Some(true) || !ours {
        return Err(AuthError::Invalid);
    }
    let user = status.user.unwrap_or_default();
    if user.username.as_deref() != Some(names::USER_AGENT) {
        return Err(AuthError::NotAnAgent);
    }
    let node = user.extra.as_ref().and_then(|extra| extra.get(names::USER_EXTRA_NODE));
    match node.map(Vec::as_slice) {
        Some([node]) if !node.is_empty() => Ok(Caller { node: node.clone() }),
        _ => Err(AuthError::NotAnAgent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judge(value: serde_json::Value) -> Verdict {
        verdict(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn only_an_agent_bound_to_a_node_is_let_in() {
        let good = json!({"authenticated": true, "audiences": ["autoscale-scheduler"], "user": {
            "username": "system:serviceaccount:kube-system:autoscaler-agent",
            "extra": {"authentication.kubernetes.io/node-name": ["n1"]}
        }});
        assert_eq!(judge(good.clone()), Ok(Caller { node: "n1".into() }));
        let with = |pointer: &str, value: serde_json::Value| {
            let mut changed = good.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            judge(changed)
        };
        assert_eq!(with("/authenticated", json!(false)), Err(AuthError::Invalid));
        assert_eq!(with("/audiences", json!(["kubernetes"])), Err(AuthError::Invalid));
        assert_eq!(with("/audiences", json!([])), Err(AuthError::Invalid));
        assert_eq!(with("/user/username", json!("system:admin")), Err(AuthError::NotAnAgent));
        assert_eq!(with("/user/extra", json!({})), Err(AuthError::NotAnAgent));
        let two = json!({"authentication.kubernetes.io/node-name": ["n1", "n2"]});
        assert_eq!(with("/user/extra", two), Err(AuthError::NotAnAgent));
        assert_eq!(judge(json!({})), Err(AuthError::Invalid));
    }

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_finds_a_silent_api_server_asked_enough_is_told_so_soon() {
        let silent = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<axum::body::Body>, std::io::Error>>()
        });
        let agents = Authenticator::new(Client::new(silent, "default"), 10 * TURN_LIMIT);
        let ask = async |index: usize| agents.caller(&headers(&format!("Bearer {index}"))).await;
        let verdicts = futures::future::join_all((0..=MAX_REVIEWS).map(ask)).await;
        assert_eq!(verdicts[0], Err(AuthError::Unavailable));
        assert_eq!(verdicts[MAX_REVIEWS], Err(AuthError::Busy));
    }

    #[test]
    fn a_token_is_not_taken_as_good_beyond_its_end() {
        let ends_in = |seconds: i64| {
            let claims = json!({"exp": Timestamp::now().as_second() + seconds, "iss": "x"});
            format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
        };
        let kept = keep_good(&ends_in(20));
        assert!(kept > Duration::from_secs(15) && kept <= Duration::from_secs(20), "{kept:?}");
        assert_eq!(keep_good(&ends_in(-5)), Duration::ZERO);
        assert_eq!(keep_good(&ends_in(3600)), KEEP_GOOD);
        for other in ["opaque", "a.b.c", "a..c", ""] {
            assert_eq!(keep_good(other), KEEP_GOOD, "{other}");
        }
    }

    #[test]
    fn headers_without_a_token_are_refused() {
        assert_eq!(bearer(&headers("Bearer abc")), Ok("abc"));
        for bad in ["Bearer ", "Basic abc", "abc", &format!("Bearer {}", "x".repeat(9000))] {
            assert_eq!(bearer(&headers(bad)), Err(AuthError::NoToken), "{bad:.20}");
        }
        assert_eq!(bearer(&HeaderMap::new()), Err(AuthError::NoToken));
    }
}
