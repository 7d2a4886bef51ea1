variable "name" {
  description = "Name of the database instance."
  type        = string
  default     = "hardcase"
}

variable "vpc_id" {
  description = "The VPC."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets without a way out, in two zones at least."
  type        = list(string)
}

variable "client_security_group_id" {
  description = "Group of the nodes, the only ones let in."
  type        = string
}

variable "kms_key_arn" {
  description = "Key that encrypts storage, backups, the administrator's password and what performance is measured of queries."
  type        = string
}

variable "instance_class" {
  description = "Class of the instance."
  type        = string
  default     = "db.t4g.medium"

  validation {
    condition     = can(regex("^db\\.[a-z0-9]+\\.[a-z0-9]+$", var.instance_class))
    error_message = "instance_class: as RDS names it, such as db.t4g.medium or db.m7g.large."
  }
}

variable "engine_version" {
  description = "Major version of Postgres; minor ones come by themselves in the window of maintenance."
  type        = string
  default     = "17"

  validation {
    condition     = can(regex("^1[5-9]$", var.engine_version))
    error_message = "engine_version: a major version from 15 to 19, such as \"17\"."
  }
}

variable "storage_gib" {
  description = "Size of the disk, GiB; it grows to five times that by itself."
  type        = number
  default     = 50

  validation {
    condition     = var.storage_gib >= 20 && var.storage_gib <= 10000
    error_message = "storage_gib: from 20, the least that gp3 has, to 10000."
  }
}

variable "multi_az" {
  description = "A standby in another zone."
  type        = bool
  default     = true
}

variable "backup_days" {
  description = "Days to any second of which the database can be brought back."
  type        = number
  default     = 14

  validation {
    condition     = var.backup_days >= 7 && var.backup_days <= 35
    error_message = "backup_days: from 7 to 35, the most that RDS keeps; without backups nothing is brought back."
  }
}

variable "protected" {
  description = "Refuse to delete the instance; when that is lifted, and it is deleted, it leaves a last snapshot either way."
  type        = bool
  default     = true
}
