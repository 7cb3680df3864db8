//! What user-svc does for the grant beside writing: it offers the Redis process that it can write to.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::cache::Cache;
use crate::database::{Database, Offer};

/// How often Redis is probed by a write.
const INTERVAL: Duration = Duration::from_millis(250);
/// How often it is tried until Redis is there for the first time: a new database is granted at once then.
const CONNECT_INTERVAL: Duration = Duration::from_millis(10);

/// Offers `database` the Redis process that `cache` is connected to, for as long as it takes writes in time. The
/// monitor grants it when the cache is suspended and no reader uses another one any more. Never returns.
pub async fn keep_offering(database: Database, cache: Cache) {
    let mut offer: Option<Offer> = None;
    let mut interval = CONNECT_INTERVAL;
    loop {
        match cache.probe().await {
            Ok(redis) => {
                interval = INTERVAL;
                let newest = Instant::now();
                let since = match &offer {
                    Some(last) if last.redis == redis => last.since,
                    _ => newest,
                };
                offer = Some(Offer { redis, since, newest });
            }
            Err(_) => offer = None,
        }
        database.offer(offer.clone());
        sleep(interval).await;
    }
}
