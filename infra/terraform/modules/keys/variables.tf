variable "name" {
  description = "Prefix of the aliases."
  type        = string
}
