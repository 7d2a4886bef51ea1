variable "name" {
  description = "Name of the file system."
  type        = string
  default     = "hardcase"
}

variable "vpc_id" {
  description = "The VPC."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets without a way out, by zone: each zone with nodes needs one."
  type        = map(string)
}

variable "client_security_group_id" {
  description = "Group of the nodes, the only ones let in."
  type        = string
}

variable "kms_key_arn" {
  description = "Key that encrypts it."
  type        = string
}
