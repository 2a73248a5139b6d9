//! The CustomResourceDefinitions as YAML. A test compares the chart's copy with them.

use wfe_model::crd;

/// Serializes every definition.
pub fn yaml() -> Result<String, serde_saphyr::ser::Error> {
    let all = [crd::workflow_execution(), crd::remediation_workflow()];
    let all = all.iter().map(serde_saphyr::to_string);
    Ok(all.collect::<Result<Vec<_>, _>>()?.join("---\n"))
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
