variable "bucket" {
  description = "Bucket of Terraform's states. Names are the world's: take one of your own."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "bucket: 3 to 63 lower-case letters, digits and hyphens, such as acme-hardcase-state; no dots, with which TLS does not work."
  }
}
