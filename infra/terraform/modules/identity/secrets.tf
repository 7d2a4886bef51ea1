# Secrets without values: people put those in (docs/how-to/provision-aws.md), so that none is ever in a plan or a state.

resource "aws_secretsmanager_secret" "this" {
  # checkov:skip=CKV2_AWS_57:values are put in by people; what they open has no rotation that AWS could call
  for_each                = var.secrets
  name                    = "${var.name}/${each.key}"
  kms_key_id              = var.platform_key_arn
  recovery_window_in_days = var.protected ? 30 : 0
}
