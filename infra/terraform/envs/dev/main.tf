# Development: one NAT gateway, no interface endpoints, no copy of the bucket; Postgres and Prometheus are in the cluster.

locals {
  name = "hardcase"
}

module "keys" {
  source = "../../modules/keys"
  name   = local.name
}

module "network" {
  source              = "../../modules/network"
  name                = local.name
  cidr                = var.vpc_cidr
  zones               = var.zones
  nat_per_zone        = false
  interface_endpoints = []
  foreign_buckets     = distinct([for source in var.sources : split("/", trimprefix(source, "s3://"))[0]])
  kms_key_arn         = module.keys.platform_arn
  log_days            = 14
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
  log_days                 = 14
  system_instance_types    = ["t3.large", "t3a.large"]
}

module "artifacts" {
  source      = "../../modules/artifacts"
  bucket      = var.bucket
  kms_key_arn = module.keys.artifacts_arn
  log_days    = 30
  run_days    = 30
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
  source       = "../../modules/registry"
  repositories = ["hardcase/python-light", "hardcase/python-train", "hardcase/mlflow", "hardcase/airflow", "postgres"]
  kms_key_arn  = module.keys.platform_arn
  protected    = var.protected
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
  secrets           = ["notify", "lineage", "airflow", "airflow-passwords", "mlflow", "grafana", "signing", "postgres"]
  ci                = length(var.ci_subjects) > 0 ? { subjects = var.ci_subjects, repository_arns = module.registry.arns } : null
  protected         = var.protected
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
}
