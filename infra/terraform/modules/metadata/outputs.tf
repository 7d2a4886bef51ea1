output "identifier" {
  description = "Name of the instance."
  value       = aws_db_instance.this.identifier
}

output "address" {
  description = "Host of the database."
  value       = aws_db_instance.this.address
}

output "password_secret_arn" {
  description = "Secret of the administrator's password, which RDS keeps."
  value       = one(aws_db_instance.this.master_user_secret[*].secret_arn)
}
