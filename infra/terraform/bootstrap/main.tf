# Once an account, before all else: the bucket of states. Its own state stays on the machine that made it; if that is lost,
# docs/how-to/provision-aws.md says how it is taken over again.

terraform {
  required_version = ">= 1.11"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }
}

provider "aws" {
  region = var.region
  default_tags {
    tags = { project = "hardcase" }
  }
}

variable "region" {
  description = "Region."
  type        = string
  default     = "eu-central-1"
}

variable "bucket" {
  description = "Bucket of Terraform's states. Names are the world's: take one of your own."
  type        = string
}

module "state" {
  source = "../modules/state"
  bucket = var.bucket
}

# Also what makes EBS volumes of the account encrypted that nobody asked to be.
resource "aws_ebs_encryption_by_default" "this" {
  enabled = true
}

output "bucket" {
  description = "Bucket, for terraform init -backend-config=bucket=…"
  value       = module.state.bucket
}
