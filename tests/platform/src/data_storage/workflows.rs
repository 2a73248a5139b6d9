//! The database table of workflows.

use anyhow::{Context, Result};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;
use wfe_model::workflow::Workflow;

/// The table.
pub(super) const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS workflows (
        workflow_id TEXT PRIMARY KEY,
        workflow_name TEXT NOT NULL,
        version TEXT NOT NULL,
        entry TEXT NOT NULL,
        UNIQUE (workflow_name, version)
    );";

/// Why a workflow is not registered.
pub(super) enum NotRegistered {
    /// The document is invalid.
    Invalid(String),
    /// The name has a workflow of this version.
    Conflict,
}

/// Registers a document: as a new version, if its name is known. Returns the entry.
pub(super) fn register(
    database: &mut Connection,
    content: &str,
) -> Result<Result<Value, NotRegistered>> {
    let read = match Workflow::read("workflow-schema.yaml", content) {
        Ok(read) => read.workflow,
        Err(error) => return Ok(Err(NotRegistered::Invalid(error.to_string()))),
    };
    let document: Value = serde_saphyr::from_str(content)?;
    // A wrapped document has its description in the spec.
    let part = |key: &str| {
        let places = [&document["spec"], &document["metadata"], &document];
        let found = places.into_iter().find_map(|it| it.get(key));
        found.cloned().unwrap_or_else(|| json!({}))
    };
    let now = Timestamp::now().to_string();
    let bundle = read.bundle.to_string();
    let digest = read.bundle.digest().to_string();
    let entry = json!({
        "workflowId": Uuid::new_v4().to_string(),
        "workflowName": read.workflow_id,
        "name": read.workflow_id,
        "version": read.version,
        "description": part("description"),
        "content": content,
        "contentHash": hex::encode(Sha256::digest(content.as_bytes())),
        "actionType": read.action_type,
        "executionEngine": read.engine.as_str(),
        "executionBundle": bundle,
        "executionBundleDigest": digest.trim_start_matches("sha256:"),
        "labels": part("labels"),
        "status": "active",
        "isLatestVersion": true,
        "createdAt": now,
        "updatedAt": now,
    });
    let transaction = database.transaction()?;
    let key = params![read.workflow_id, read.version];
    let known = "SELECT 1 FROM workflows WHERE workflow_name = ?1 AND version = ?2";
    let known = transaction.query_row(known, key, |_| Ok(()));
    if known.optional()?.is_some() {
        return Ok(Err(NotRegistered::Conflict));
    }
    transaction.execute(
        "UPDATE workflows SET entry = json_set(entry, '$.isLatestVersion', json('false')) WHERE workflow_name = ?1",
        params![read.workflow_id],
    )?;
    put(&transaction, &entry)?;
    transaction.commit()?;
    Ok(Ok(entry))
}

/// Stores an entry as it is.
pub(super) fn put(database: &Connection, entry: &Value) -> Result<()> {
    let text = |key: &str| entry[key].as_str().context("a text");
    database.execute(
        "INSERT OR REPLACE INTO workflows VALUES (?1, ?2, ?3, ?4)",
        params![
            text("workflowId")?,
            text("workflowName")?,
            text("version")?,
            entry.to_string()
        ],
    )?;
    Ok(())
}

/// Deletes an entry, which the real service never does.
pub(super) fn delete(database: &Connection, workflow_id: &str) -> Result<()> {
    let delete = "DELETE FROM workflows WHERE workflow_id = ?1";
    database.execute(delete, params![workflow_id])?;
    Ok(())
}

/// The entry with this id.
pub(super) fn get(database: &Connection, workflow_id: &str) -> Result<Option<Value>> {
    let select = "SELECT entry FROM workflows WHERE workflow_id = ?1";
    let found = database.query_row(select, params![workflow_id], |row| row.get::<_, String>(0));
    let found = found.optional()?;
    Ok(found.map(|it| serde_json::from_str(&it)).transpose()?)
}

/// Changes the status of an entry; returns the entry.
pub(super) fn set_status(
    database: &Connection,
    workflow_id: &str,
    status: &str,
    reason: &str,
) -> Result<Option<Value>> {
    let Some(mut entry) = get(database, workflow_id)? else {
        return Ok(None);
    };
    entry["status"] = json!(status);
    entry["statusReason"] = json!(reason);
    entry["updatedAt"] = json!(Timestamp::now().to_string());
    put(database, &entry)?;
    Ok(Some(entry))
}

/// All entries, ordered by name and version.
pub(super) fn all(database: &Connection) -> Result<Vec<Value>> {
    let select = "SELECT entry FROM workflows ORDER BY workflow_name, version";
    let mut select = database.prepare(select)?;
    let rows = select.query_map([], |row| row.get::<_, String>(0))?;
    rows.map(|row| Ok(serde_json::from_str(&row?)?)).collect()
}
