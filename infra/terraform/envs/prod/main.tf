# Production: a NAT gateway a zone, endpoints, Postgres in RDS with a standby, a copy of the bucket, managed Prometheus.

locals {
  name        = "hardcase"
  storage_gib = 50
}

module "keys" {
  source = "../../modules/keys"
  name   = local.name
}

module "network" {
  source          = "../../modules/network"
  name            = local.name
  cidr            = var.vpc_cidr
  zones           = var.zones
  foreign_buckets = distinct([for source in var.sources : split("/", trimprefix(source, "s3://"))[0]])
  kms_key_arn     = module.keys.platform_arn
}

module "cluster" {
  source                   = "../../modules/cluster"
  name                     = local.name
  vpc_id                   = module.network.vpc_id
  vpc_cidr                 = module.network.cidr
  node_subnet_ids          = module.network.private_subnet_ids
  control_plane_subnet_ids = values(module.network.intra_subnet_ids)
  public_access_cidrs      = var.public_access_cidrs
  admin_role_arns          = var.admin_role_arns
  gpu_node_groups          = var.gpu_node_groups
  kms_key_arn              = module.keys.platform_arn
}

module "artifacts" {
  source      = "../../modules/artifacts"
  bucket      = var.bucket
  kms_key_arn = module.keys.artifacts_arn
  replicate   = true
  protected   = var.protected
  providers   = { aws = aws, aws.replica = aws.replica }
}

module "files" {
  source                   = "../../modules/files"
  name                     = local.name
  vpc_id                   = module.network.vpc_id
  subnet_ids               = module.network.intra_subnet_ids
  client_security_group_id = module.cluster.node_security_group_id
  kms_key_arn              = module.keys.platform_arn
}

module "registry" {
  source      = "../../modules/registry"
  kms_key_arn = module.keys.platform_arn
  protected   = var.protected
}

module "identity" {
  source            = "../../modules/identity"
  name              = local.name
  cluster_name      = module.cluster.name
  bucket_arn        = module.artifacts.bucket_arn
  artifacts_key_arn = module.keys.artifacts_arn
  signing_key_arn   = module.keys.signing_arn
  platform_key_arn  = module.keys.platform_arn
  sources           = var.sources
  secrets           = ["notify", "lineage", "airflow", "airflow-passwords", "mlflow", "grafana"]
  prometheus        = { workspace_arn = module.observability.prometheus_workspace_arn }
  ci                = length(var.ci_subjects) > 0 ? { subjects = var.ci_subjects, repository_arns = module.registry.arns } : null
  protected         = var.protected
}

module "metadata" {
  source                   = "../../modules/metadata"
  name                     = local.name
  vpc_id                   = module.network.vpc_id
  subnet_ids               = values(module.network.intra_subnet_ids)
  client_security_group_id = module.cluster.node_security_group_id
  kms_key_arn              = module.keys.platform_arn
  storage_gib              = local.storage_gib
  protected                = var.protected
}

module "observability" {
  source             = "../../modules/observability"
  name               = local.name
  kms_key_arn        = module.keys.platform_arn
  emails             = var.emails
  monthly_budget     = var.monthly_budget
  gpu_budget         = var.gpu_budget
  nat_gateway_ids    = module.network.nat_gateway_ids
  interruption_queue = module.cluster.interruption_queue
  database           = { identifier = module.metadata.identifier, storage_gib = local.storage_gib }
  prometheus         = true
}
