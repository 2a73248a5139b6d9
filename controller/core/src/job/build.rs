//! Builds a Job from a plan. Cannot fail: the plan is validated.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar, PodSpec,
    PodTemplateSpec, ResourceRequirements, SecretVolumeSource, SecurityContext, Volume,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use wfe_model::workflow::{Dependencies, Resources};

use crate::names;
use crate::plan::Plan;

const MEMORY: &str = "memory";
const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
/// Size of `/tmp` without a limit of ephemeral storage.
const TMP_SIZE: &str = "1Gi";
/// Name of the workflow's container.
pub const CONTAINER: &str = "workflow";
/// Time after the deadline of the Job at which its pod ends by itself.
const POD_DEADLINE_MARGIN: Duration = Duration::from_mins(1);

/// Builds the Job of a plan, suspended.
pub fn build(plan: &Plan) -> Job {
    Job {
        metadata: plan.metadata(),
        spec: Some(JobSpec {
            active_deadline_seconds: i64::try_from(plan.timeout.as_secs()).ok(),
            backoff_limit: Some(0),
            completions: Some(1),
            parallelism: Some(1),
            // Started after the status stores the uid of this Job: a late create runs nothing.
            suspend: Some(true),
            // A replacement pod must not run beside a pod that is still terminating.
            pod_replacement_policy: Some("Failed".to_owned()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(plan.labels()),
                    annotations: Some(BTreeMap::from([plan.source_annotation()])),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(plan)),
            },
            ..JobSpec::default()
        }),
        status: None,
    }
}

fn pod(plan: &Plan) -> PodSpec {
    let resources = resources(
        plan.valid.workflow.resources.as_ref(),
        &plan.default_resources,
    );
    let limit = resources.limits.as_ref();
    let limit = limit.and_then(|it| it.get(EPHEMERAL_STORAGE)).cloned();
    let tmp = limit.unwrap_or_else(|| Quantity(TMP_SIZE.to_owned()));
    let (volumes, mounts) = volumes(&plan.valid.workflow.dependencies, tmp);
    PodSpec {
        // Should the Job controller not end the Job at its deadline, the kubelet ends the pod.
        active_deadline_seconds: i64::try_from((plan.timeout + POD_DEADLINE_MARGIN).as_secs()).ok(),
        restart_policy: Some("Never".to_owned()),
        // Variables of Services could be taken for parameters.
        enable_service_links: Some(false),
        service_account_name: Some(plan.service_account.clone()),
        security_context: Some(plan.pod_security_context()),
        containers: vec![Container {
            name: CONTAINER.to_owned(),
            image: Some(plan.valid.image.to_string()),
            env: Some(environment(plan)),
            resources: Some(resources),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                capabilities: Some(Capabilities {
                    drop: Some(vec!["ALL".to_owned()]),
                    add: None,
                }),
                read_only_root_filesystem: Some(true),
                ..SecurityContext::default()
            }),
            volume_mounts: Some(mounts),
            ..Container::default()
        }],
        volumes: Some(volumes),
        ..PodSpec::default()
    }
}

fn environment(plan: &Plan) -> Vec<EnvVar> {
    let values = plan.values();
    let has_home = values.iter().any(|(name, _)| name == "HOME");
    // The image's may be read-only.
    let home = (!has_home).then(|| ("HOME".to_owned(), "/tmp".to_owned()));
    home.into_iter()
        .chain(values)
        .map(|(name, value)| EnvVar {
            name,
            // The kubelet expands $(NAME); $$ is an escaped $.
            value: Some(value.replace('$', "$$")),
            value_from: None,
        })
        .collect()
}

/// The catalog entry decides on the resources that it names, the defaults on the others. Without a
/// limit of memory or storage a workflow could take that of the whole node: then its request is the
/// limit.
fn resources(declared: Option<&Resources>, defaults: &Resources) -> ResourceRequirements {
    let declared = declared.cloned().unwrap_or_default();
    let Resources {
        mut requests,
        mut limits,
    } = declared.clone();
    let is_open =
        |name: &str| !declared.requests.contains_key(name) && !declared.limits.contains_key(name);
    for (all, defaults) in [
        (&mut requests, &defaults.requests),
        (&mut limits, &defaults.limits),
    ] {
        let open = defaults.iter().filter(|(name, _)| is_open(name));
        all.extend(open.map(|(name, amount)| (name.clone(), amount.clone())));
    }
    for resource in [MEMORY, EPHEMERAL_STORAGE] {
        if let Some(request) = requests
            .get(resource)
            .filter(|_| !limits.contains_key(resource))
        {
            limits.insert(resource.to_owned(), request.clone());
        }
    }
    let amounts = |map: BTreeMap<String, String>| {
        let amounts = map.into_iter();
        let amounts = amounts.map(|(name, amount)| (name, Quantity(amount)));
        Some(amounts.collect::<BTreeMap<_, _>>()).filter(|amounts| !amounts.is_empty())
    };
    ResourceRequirements {
        requests: amounts(requests),
        limits: amounts(limits),
        claims: None,
    }
}

fn volumes(dependencies: &Dependencies, tmp: Quantity) -> (Vec<Volume>, Vec<VolumeMount>) {
    let mut volumes = vec![Volume {
        name: "tmp".to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: Some(tmp),
            medium: None,
        }),
        ..Volume::default()
    }];
    let mut mounts = vec![VolumeMount {
        name: "tmp".to_owned(),
        mount_path: "/tmp".to_owned(),
        ..VolumeMount::default()
    }];
    let mut mount = |volume: &Volume, path: String| {
        mounts.push(VolumeMount {
            name: volume.name.clone(),
            mount_path: path,
            read_only: Some(true),
            ..VolumeMount::default()
        });
    };
    for name in &dependencies.secrets {
        let source = SecretVolumeSource {
            secret_name: Some(name.clone()),
            ..SecretVolumeSource::default()
        };
        let volume = Volume {
            name: names::volume_name("secret", name),
            secret: Some(source),
            ..Volume::default()
        };
        mount(&volume, format!("/run/kubernaut/secrets/{name}"));
        volumes.push(volume);
    }
    for name in &dependencies.config_maps {
        let source = ConfigMapVolumeSource {
            name: name.clone(),
            ..ConfigMapVolumeSource::default()
        };
        let volume = Volume {
            name: names::volume_name("configmap", name),
            config_map: Some(source),
            ..Volume::default()
        };
        mount(&volume, format!("/run/kubernaut/configmaps/{name}"));
        volumes.push(volume);
    }
    (volumes, mounts)
}
