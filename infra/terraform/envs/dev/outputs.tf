output "places" {
  description = "What infra/kubernetes/overlays/dev/places.yaml holds: terraform output -raw places > …/places.yaml."
  value = yamlencode({
    apiVersion = "v1"
    kind       = "ConfigMap"
    metadata   = { name = "places", annotations = { "config.kubernetes.io/local-config" = "true" } }
    data = {
      region = var.region
      bucket = module.artifacts.bucket
      files  = module.files.id
      vpc    = module.network.cidr
      dns    = module.cluster.dns
      providers = yamlencode({
        s3 = { default = {
          endpoint = "s3.${var.region}.amazonaws.com", region = var.region, disableSSL = false, credentials = { fromEnv = true }
        } }
      })
    }
  })
}

output "launch" {
  description = "What hardcase launch takes: cluster (for kubectl and --port-forward), --namespace, --service-account, and where the images lie (--image); store and key are what steps find in their environment."
  value = {
    region          = var.region
    cluster         = module.cluster.name
    namespace       = "hardcase"
    service_account = "pipeline-runner"
    images          = module.registry.urls
    store           = module.artifacts.store
    signing_key     = "awskms:${module.keys.signing_alias}"
  }
}

output "karpenter" {
  description = "Values of Karpenter's chart: settings.clusterName and settings.interruptionQueue; and the role of nodes."
  value       = { cluster_name = module.cluster.name, interruption_queue = module.cluster.interruption_queue, node_role = module.cluster.node_role }
}

output "secrets" {
  description = "Secrets to be filled (docs/how-to/provision-aws.md)."
  value       = module.identity.secret_names
}

output "roles" {
  description = "Role of each account in the cluster."
  value       = module.identity.role_arns
}

output "ci_role" {
  description = "Role of the build that pushes images; null without ci_subjects."
  value       = module.identity.ci_role_arn
}
