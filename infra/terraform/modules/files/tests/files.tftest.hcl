mock_provider "aws" {
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
  mock_resource "aws_efs_file_system" {
    defaults = {
      id  = "fs-0123456789abcdef0"
      arn = "arn:aws:elasticfilesystem:eu-central-1:123456789012:file-system/fs-0123456789abcdef0"
    }
  }
}

variables {
  vpc_id                   = "vpc-1"
  subnet_ids               = { a = "subnet-a", b = "subnet-b", c = "subnet-c" }
  client_security_group_id = "sg-1"
  kms_key_arn              = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
}

run "the_file_system" {
  assert {
    condition     = aws_efs_file_system.this.encrypted && aws_efs_file_system.this.kms_key_id == var.kms_key_arn
    error_message = "Encrypted by our key."
  }
  assert {
    condition     = aws_vpc_security_group_ingress_rule.this.referenced_security_group_id == "sg-1" && aws_vpc_security_group_ingress_rule.this.from_port == 2049
    error_message = "Reached from nodes only."
  }
  assert {
    condition     = length(aws_efs_mount_target.this) == 3
    error_message = "A mount target in every zone."
  }
  assert {
    condition     = length([for each in data.aws_iam_policy_document.this.statement : each if each.effect == "Deny" && one(each.condition).variable == "aws:SecureTransport"]) == 1
    error_message = "TLS only."
  }
}
