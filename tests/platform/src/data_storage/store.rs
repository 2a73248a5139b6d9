//! The database, and its table of audit events.

use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{rules, workflows};

/// One database.
pub(super) struct Store(Connection);

/// Filters and page of a query.
#[derive(Default)]
pub(super) struct Query {
    pub correlation_id: Option<String>,
    pub event_type: Option<String>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub limit: usize,
    pub offset: usize,
}

impl Store {
    /// A new database that ends with the value.
    pub(super) fn in_memory() -> Result<Self> {
        Self::with_tables(Connection::open_in_memory()?)
    }

    /// The database in a file, which is created if it does not exist.
    pub(super) fn open(file: &Path) -> Result<Self> {
        let connection = Connection::open(file)?;
        // A transaction that was answered survives the process.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        Self::with_tables(connection)
    }

    fn with_tables(connection: Connection) -> Result<Self> {
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS events (
                event_id TEXT PRIMARY KEY,
                event_timestamp INTEGER NOT NULL, -- microseconds
                event_type TEXT NOT NULL,
                correlation_id TEXT NOT NULL,
                event TEXT NOT NULL
            );
            CREATE INDEX IF NOT EXISTS by_correlation ON events (correlation_id, event_timestamp);",
        )?;
        connection.execute_batch(workflows::TABLE)?;
        Ok(Self(connection))
    }

    /// The database, for the table of workflows.
    pub(super) fn database(&mut self) -> &mut Connection {
        &mut self.0
    }

    /// Stores all events or none; returns their ids.
    pub(super) fn insert(&mut self, events: &[Value], keeps_engine: bool) -> Result<Vec<String>> {
        let transaction = self.0.transaction()?;
        let mut ids = Vec::new();
        for event in events {
            let at = rules::instant(event).context("no timestamp")?;
            let text = |key: &str| event.get(key).and_then(Value::as_str).unwrap_or_default();
            let id = Uuid::new_v4().to_string();
            let data = event.get("event_data").and_then(Value::as_object);
            let at = Timestamp::from_microsecond(at.as_microsecond())?;
            let stored = json!({
                "event_id": id,
                "event_timestamp": at.to_string(),
                "event_type": text("event_type"),
                "version": text("version"),
                "event_category": text("event_category"),
                "event_action": text("event_action"),
                "event_outcome": text("event_outcome"),
                "correlation_id": text("correlation_id"),
                "resource_type": text("resource_type"),
                "resource_id": text("resource_id"),
                "namespace": text("namespace"),
                "actor_id": text("actor_id"),
                "actor_type": text("actor_type"),
                "severity": "info",
                "event_data": rules::stored_data(data.context("no event_data")?, keeps_engine),
            });
            transaction.execute(
                "INSERT INTO events VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    id,
                    at.as_microsecond(),
                    text("event_type"),
                    text("correlation_id"),
                    stored.to_string()
                ],
            )?;
            ids.push(id);
        }
        transaction.commit()?;
        Ok(ids)
    }

    /// A page of events, the newest first, and the total number of matches.
    pub(super) fn find(&self, query: &Query) -> Result<(Vec<Value>, usize)> {
        const FROM: &str = "FROM events
            WHERE (?1 IS NULL OR correlation_id = ?1) AND (?2 IS NULL OR event_type = ?2)
            AND (?3 IS NULL OR event_timestamp >= ?3) AND (?4 IS NULL OR event_timestamp <= ?4)";
        let (since, until) = (
            query.since.map(Timestamp::as_microsecond),
            query.until.map(Timestamp::as_microsecond),
        );
        let filter = params![query.correlation_id, query.event_type, since, until];
        let count = format!("SELECT count(*) {FROM}");
        let total: i64 = self.0.query_row(&count, filter, |row| row.get(0))?;
        let page = format!(
            "SELECT event {FROM} ORDER BY event_timestamp DESC, event_id DESC LIMIT {} OFFSET {}",
            query.limit, query.offset
        );
        let mut page = self.0.prepare(&page)?;
        let rows = page.query_map(filter, |row| row.get::<_, String>(0))?;
        let events = rows.map(|row| Ok(serde_json::from_str(&row?)?));
        let events: Result<_> = events.collect();
        Ok((events?, usize::try_from(total)?))
    }
}
