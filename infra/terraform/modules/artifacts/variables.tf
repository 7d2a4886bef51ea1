variable "bucket" {
  description = "Bucket of the store (main/), of Kubeflow (kfp/), of MLflow (mlflow/) and of Airflow's logs (airflow-logs/). Names are the world's: take one of your own."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,48}[a-z0-9]$", var.bucket))
    error_message = "bucket: 3 to 50 lower-case letters, digits and hyphens, so that -access-logs and -replica fit behind it; no dots, with which TLS does not work."
  }
}

variable "kms_key_arn" {
  description = "Key that encrypts what lies in the bucket."
  type        = string
}

variable "protected" {
  description = "Refuse to destroy the bucket while it holds anything."
  type        = bool
  default     = true
}

variable "log_days" {
  description = "Days for which Airflow's logs and the log of accesses are kept."
  type        = number
  default     = 180

  validation {
    condition     = var.log_days >= 30
    error_message = "log_days: at least 30, or nobody can look into what went wrong last month."
  }
}

variable "run_days" {
  description = "Days for which Kubeflow keeps what steps handed on; models and their records lie in the store and stay."
  type        = number
  default     = 180

  validation {
    condition     = var.run_days >= 30
    error_message = "run_days: at least 30; Kubeflow's cache points there, and a run that finds its inputs gone fails."
  }
}

variable "noncurrent_days" {
  description = "Days after which what was overwritten or deleted is gone; until then it can be brought back."
  type        = number
  default     = 90

  validation {
    condition     = var.noncurrent_days >= 7
    error_message = "noncurrent_days: at least 7, so that a mistake made on a Friday can be mended."
  }
}

variable "replicate" {
  description = "Keep a copy of the store in the region of the provider aws.replica."
  type        = bool
  default     = false
}
