//! The CustomResourceDefinitions as YAML. A test compares the chart's copy with them.

/// Serializes every definition.
pub fn yaml() -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(&wfe_model::crd::workflow_execution())
}

#[cfg(test)]
mod tests {
    #[test]
    fn chart_crds_equal_the_generated_ones() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../charts/workflow-execution/files/crds.yaml"
        );
        let in_chart = std::fs::read_to_string(path).expect("the chart has the CRDs");
        assert_eq!(
            super::yaml().unwrap(),
            in_chart,
            "the chart's CRDs are outdated: run `make generate` and review the difference"
        );
    }
}
