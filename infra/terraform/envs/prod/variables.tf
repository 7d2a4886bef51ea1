variable "account_id" {
  description = "Account that this may be applied to; a slip of credentials is then refused. Unset, any."
  type        = string
  default     = null

  validation {
    condition     = var.account_id == null ? true : can(regex("^[0-9]{12}$", var.account_id))
    error_message = "account_id: twelve digits, as aws sts get-caller-identity shows them."
  }
}

variable "region" {
  description = "Region; infra/kubernetes/overlays/prod/places.yaml names the same."
  type        = string
  default     = "eu-central-1"
}

variable "replica_region" {
  description = "Region of the bucket's copy."
  type        = string
  default     = "eu-west-1"

  validation {
    condition     = var.replica_region != var.region
    error_message = "replica_region: another region than region, or the copy is lost with the original."
  }
}

variable "zones" {
  description = "Three availability zones of the region."
  type        = list(string)
  default     = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
}

variable "vpc_cidr" {
  description = "Range of the VPC; places.yaml names the same."
  type        = string
  default     = "10.10.0.0/16"
}

variable "bucket" {
  description = "Bucket of store, Kubeflow, MLflow and logs; places.yaml names the same."
  type        = string
  default     = "hardcase-prod"
}

variable "sources" {
  description = "Where training data lies, s3://bucket/prefix each."
  type        = list(string)
  default     = []
}

variable "admin_role_arns" {
  description = "IAM roles that administer the cluster."
  type        = list(string)
}

variable "public_access_cidrs" {
  description = "Ranges from which the cluster's API may be reached over the internet; none by default."
  type        = list(string)
  default     = []
}

variable "gpu_node_groups" {
  description = "Node groups with GPUs beside Karpenter's pools, for reserved capacity or EFA (modules/cluster)."
  type = map(object({
    instance_type = string
    zone          = string
    capacity      = optional(string, "ON_DEMAND")
    reservation   = optional(string)
    max           = optional(number, 1)
    min           = optional(number, 0)
    efa           = optional(bool, false)
  }))
  default = {}
}

variable "emails" {
  description = "Who is told of alarms and money."
  type        = list(string)
}

variable "monthly_budget" {
  description = "Dollars a month that the account may cost."
  type        = number
  default     = 4000
}

variable "gpu_budget" {
  description = "Dollars a month for nodes with GPUs."
  type        = number
  default     = 2500
}

variable "ci_subjects" {
  description = "Workflows that may push images, as the claim sub of GitHub's tokens names them; none by default."
  type        = list(string)
  default     = []
}

variable "protected" {
  description = "Refuse to destroy what holds data. To tear down: apply with false first (docs/how-to/provision-aws.md)."
  type        = bool
  default     = true
}
