//! What holds on a real cluster. Run by `make acceptance`; a file's name tells the layer.

mod cluster_access;
mod cluster_node;
mod schema_agreement;
mod schema_cases;
mod schema_users_view;
mod schema_verdicts;
mod setup;
