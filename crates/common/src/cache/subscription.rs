//! A connection that receives what is published on a channel, and takes commands next to that (RESP3).

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ProtocolVersion, PushInfo, PushKind, RedisError};

use super::EDITION;
use super::connection::{CONNECT_TIMEOUT, connection_info};
use crate::config::CacheSettings;

/// How long a reply may take before the connection is given up.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait before connecting again, so that a Redis that is away is not flooded.
pub const RECONNECT_INTERVAL: Duration = Duration::from_millis(250);

/// Where to subscribe.
#[derive(Debug, Clone)]
pub struct Channel {
    client: Client,
    /// The channel's name.
    pub name: String,
}

impl Channel {
    /// The channel on which writers publish the keys that they change.
    ///
    /// # Errors
    /// A URL that Redis' client cannot use.
    pub fn invalidations(settings: &CacheSettings) -> Result<Self, Box<dyn std::error::Error>> {
        Self::new(settings, "invalidations")
    }

    /// The channel on which near members acknowledge these messages.
    ///
    /// # Errors
    /// A URL that Redis' client cannot use.
    pub fn acks(settings: &CacheSettings) -> Result<Self, Box<dyn std::error::Error>> {
        Self::new(settings, "acks")
    }

    fn new(settings: &CacheSettings, name: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let info = connection_info(settings)?;
        let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        // Pub/sub has no database numbers, so the name holds it.
        let name = format!("{EDITION}{name}:{}", redis.db());
        let client = Client::open(info.set_redis_settings(redis)).map_err(|_| "REDIS_URL cannot be used")?;
        Ok(Self { client, name })
    }

    /// Connects and subscribes. From then on `apply` gets each message, in the order in which Redis has sent messages
    /// and replies: when a command's reply is there, what was published before it ran is applied.
    ///
    /// # Errors
    /// Redis cannot be reached, or does not speak RESP3.
    pub async fn subscribe(
        &self,
        apply: impl Fn(&[u8]) + Send + Sync + 'static,
    ) -> Result<MultiplexedConnection, RedisError> {
        // A function, and not a channel: it runs where the connection is read, before the next reply is looked at.
        let push = move |push: PushInfo| -> Result<(), RedisError> {
            if push.kind == PushKind::Message
                && let [_, redis::Value::BulkString(message)] = push.data.as_slice()
            {
                apply(message);
            }
            Ok(())
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(REPLY_TIMEOUT))
            .set_push_sender(push);
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        connection.subscribe(&self.name).await?;
        Ok(connection)
    }
}
