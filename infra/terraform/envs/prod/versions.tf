terraform {
  required_version = ">= 1.11"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }
  # The bucket: terraform init -backend-config=bucket=…
  backend "s3" {
    key          = "hardcase/prod.tfstate"
    region       = "eu-central-1"
    encrypt      = true
    use_lockfile = true
  }
}

provider "aws" {
  region              = var.region
  allowed_account_ids = local.accounts
  default_tags {
    tags = local.tags
  }
}

provider "aws" {
  alias               = "replica"
  region              = var.replica_region
  allowed_account_ids = local.accounts
  default_tags {
    tags = local.tags
  }
}

locals {
  accounts = var.account_id == null ? null : [var.account_id]
  tags     = { project = "hardcase", environment = "prod" }
}
