variable "name" {
  description = "Prefix of the roles and of the secrets."
  type        = string
  default     = "hardcase"
}

variable "cluster_name" {
  description = "The cluster whose accounts get roles."
  type        = string
}

variable "bucket_arn" {
  description = "The bucket."
  type        = string
}

variable "artifacts_key_arn" {
  description = "Key of the bucket."
  type        = string
}

variable "signing_key_arn" {
  description = "Key that signs models."
  type        = string
}

variable "platform_key_arn" {
  description = "Key of the secrets."
  type        = string
}

variable "sources" {
  description = "Where training data lies on S3, s3://bucket/prefix each; runs may read there and nowhere else."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for source in var.sources : can(regex("^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^*?]+$", source))])
    error_message = "sources: give each as s3://bucket/prefix, with a prefix and without * or ?, such as s3://acme-pictures/labelled."
  }
}

variable "secrets" {
  description = "Secrets that external-secrets reads, below the prefix; Terraform makes them empty and never knows a value."
  type        = set(string)
}

variable "protected" {
  description = "Keep a deleted secret for thirty days, in which it can be brought back; else it is gone at once."
  type        = bool
  default     = true
}

variable "prometheus" {
  description = "Workspace that Prometheus may write to; null where there is none."
  type        = object({ workspace_arn = string })
  default     = null
}

variable "ci" {
  description = <<-EOT
    Who may push images from outside, by OIDC; null for nobody. issuer: of the tokens. subjects: which of its workflows, as
    the claim sub names them, never a bare wildcard. repository_arns: which repositories.
  EOT
  type = object({
    issuer          = optional(string, "https://token.actions.githubusercontent.com")
    audience        = optional(string, "sts.amazonaws.com")
    subjects        = list(string)
    repository_arns = list(string)
  })
  default = null

  validation {
    condition     = var.ci == null ? true : startswith(var.ci.issuer, "https://")
    error_message = "ci: issuer is a URL with https://, such as https://token.actions.githubusercontent.com."
  }
  validation {
    condition     = var.ci == null ? true : length(var.ci.subjects) > 0 && alltrue([for subject in var.ci.subjects : can(regex("^[^*?]+:[^*?]+:.+$", subject))])
    error_message = "ci: subjects name repository and branch, such as \"repo:acme/hardcase:ref:refs/heads/main\"; with a wildcard in the repository anybody could push."
  }
}
