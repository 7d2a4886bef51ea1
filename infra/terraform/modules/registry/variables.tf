variable "repositories" {
  description = "Repositories of images."
  type        = set(string)
  default     = ["hardcase/python-light", "hardcase/python-train", "hardcase/mlflow", "hardcase/airflow"]
}

variable "kms_key_arn" {
  description = "Key that encrypts the images."
  type        = string
}

variable "protected" {
  description = "Refuse to destroy a repository while it holds images."
  type        = bool
  default     = true
}

variable "untagged_days" {
  description = "Days after which an image without a tag is removed. Tagged ones stay: records of models name them by digest."
  type        = number
  default     = 14

  validation {
    condition     = var.untagged_days >= 1
    error_message = "untagged_days: at least 1, or an image may vanish while it is being pushed."
  }
}
