//! Writes Tekton bundles: images whose layers have one Tekton object each.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::Header;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Writes `objects` as a bundle into `directory`, an OCI image layout.
pub(super) fn write(directory: &Path, objects: &[Value]) -> Result<()> {
    fs::create_dir_all(directory.join("blobs/sha256"))?;
    let layers = objects.iter().map(|object| layer(directory, object));
    let layers = layers.collect::<Result<Vec<_>>>()?;
    let digests: Vec<_> = layers.iter().map(|layer| &layer["digest"]).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": digests },
    });
    let config_type = "application/vnd.oci.image.config.v1+json";
    let config = blob(directory, config_type, config.to_string().as_bytes())?;
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    let manifest = blob(directory, MANIFEST, manifest.to_string().as_bytes())?;
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(directory.join("index.json"), index.to_string())?;
    let layout = json!({ "imageLayoutVersion": "1.0.0" });
    fs::write(directory.join("oci-layout"), layout.to_string())?;
    Ok(())
}

/// Writes the layer of an object; returns its descriptor, with what Tekton finds it by.
fn layer(directory: &Path, object: &Value) -> Result<Value> {
    let text = |pointer: &str| {
        let value = object.pointer(pointer).and_then(Value::as_str);
        value.with_context(|| format!("the object has no {pointer}"))
    };
    let (name, version) = (text("/metadata/name")?, text("/apiVersion")?);
    let (_, version) = version.split_once('/').context("no API group")?;
    let content = object.to_string();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_mode(0o600);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, name, content.as_bytes())?;
    let layer_type = "application/vnd.oci.image.layer.v1.tar";
    let mut descriptor = blob(directory, layer_type, &archive.into_inner()?)?;
    if let Some(descriptor) = descriptor.as_object_mut() {
        let annotations = json!({
            "dev.tekton.image.name": name,
            "dev.tekton.image.kind": text("/kind")?.to_lowercase(),
            "dev.tekton.image.apiVersion": version,
        });
        descriptor.insert("annotations".to_owned(), annotations);
    }
    Ok(descriptor)
}

/// Writes a blob; returns its descriptor.
fn blob(directory: &Path, media_type: &str, content: &[u8]) -> Result<Value> {
    let digest = hex::encode(Sha256::digest(content));
    fs::write(directory.join("blobs/sha256").join(&digest), content)?;
    Ok(
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len() }),
    )
}
