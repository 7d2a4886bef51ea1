variable "name" {
  description = "Name of the VPC and of what lies in it; also the value of the tag karpenter.sh/discovery."
  type        = string
}

variable "cidr" {
  description = "Range of the VPC. Each node and each pod takes an address of it."
  type        = string

  validation {
    condition     = can(cidrhost(var.cidr, 0)) && try(tonumber(split("/", var.cidr)[1]) >= 16 && tonumber(split("/", var.cidr)[1]) <= 20, false)
    error_message = "cidr: each pod takes an address, and three zones share the range: give a private range from /16 to /20, such as 10.20.0.0/16."
  }
}

variable "zones" {
  description = "Three availability zones of the region, by name."
  type        = list(string)

  validation {
    condition     = length(var.zones) == 3 && length(distinct(var.zones)) == 3
    error_message = "zones: name three different zones, such as [\"eu-central-1a\", \"eu-central-1b\", \"eu-central-1c\"]; aws ec2 describe-availability-zones lists them."
  }
}

variable "nat_per_zone" {
  description = "A NAT gateway in each zone, so that losing a zone cuts off no other; else one for all, which is cheaper."
  type        = bool
  default     = true
}

variable "interface_endpoints" {
  description = "Services of AWS that are reached inside the VPC; each costs by the hour and zone. S3 always is, at no cost."
  type        = set(string)
  default = [
    "aps-workspaces", "autoscaling", "ec2", "ecr.api", "ecr.dkr", "eks", "eks-auth", "elasticfilesystem", "kms", "logs", "secretsmanager", "sqs", "ssm", "sts",
  ]
}

variable "foreign_buckets" {
  description = "Buckets of other accounts that may be read through the endpoint of S3 (public data sets, say), by name."
  type        = list(string)
  default     = []
}

variable "kms_key_arn" {
  description = "Key that encrypts the flow logs."
  type        = string
}

variable "log_days" {
  description = "Days for which flow logs are kept; one of the numbers that CloudWatch takes."
  type        = number
  default     = 90
}
