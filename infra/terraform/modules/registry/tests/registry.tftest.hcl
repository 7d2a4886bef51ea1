mock_provider "aws" {}

variables {
  kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
}

run "images" {
  assert {
    condition     = alltrue([for each in aws_ecr_repository.this : each.image_tag_mutability == "IMMUTABLE" && each.image_scanning_configuration[0].scan_on_push])
    error_message = "A tag stays what it is, and each image is scanned."
  }
  assert {
    condition     = alltrue([for each in aws_ecr_repository.this : each.encryption_configuration[0].encryption_type == "KMS" && !each.force_delete])
    error_message = "Encrypted by our key, and kept."
  }
  assert {
    condition     = alltrue([for each in aws_ecr_lifecycle_policy.this : jsondecode(each.policy).rules[0].selection.tagStatus == "untagged"])
    error_message = "Only images without a tag are removed: records of models name the others."
  }
}

run "removal_at_once_is_refused" {
  command = plan
  variables {
    untagged_days = 0
  }
  expect_failures = [var.untagged_days]
}
