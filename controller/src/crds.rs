//! The CustomResourceDefinitions as text. The chart's copy is compared with this by a test.

/// YAML of every definition; the error is the serializer's.
pub fn yaml() -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(&wfe_model::crd::workflow_execution())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_chart_has_the_definitions_that_the_types_say() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../charts/workflow-execution/crds/kubernaut.ai.yaml"
        );
        let in_chart = std::fs::read_to_string(path).expect("the chart has the definitions");
        assert_eq!(
            super::yaml().unwrap(),
            in_chart,
            "run `make generate` and look at the difference"
        );
    }
}
